"""What two steps that were timed in turn differ by, block by block, and which difference is worth telling."""

import math
from collections.abc import Callable, Sequence

ALPHA = 0.05  # the risk that any interval on which a gate or a search decides misses the truth
LEAST = math.log(1.01)  # a gain that is worth telling
Blocks = Sequence[tuple[float, float]]


def log_ratios(old: Blocks, new: Blocks, samples: Callable[[int], float] = lambda _block: 1.0) -> list[float]:
    """Each block's log of old over new; ``samples`` of a block are how many times the old one's samples the new has."""
    return [
        math.log(samples(block) * math.sqrt(a * b / (c * d)))
        for block, ((a, b), (c, d)) in enumerate(zip(old, new, strict=True))
    ]
