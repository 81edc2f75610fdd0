"""How much faster, for each sample: blocks of steps in turn, and when they are enough to say.

A block runs the old step and the new one as ABBA (``measure.timing.time_in_blocks``); its gain is the log ratio of
their times for each sample, geometric means of both runs. The gain of a change is the median over blocks. Its interval
is looked at after each of ``LOOKS`` blocks, and all that a search ever looks at share ``measure.effect.ALPHA``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mfubench.measure.effect import LEAST
from mfubench.measure.stats import bootstrap_median

LOOKS = (16, 32, 64)
UNCHANGED = "nothing was changed; no gain was measured"
Verdict = Literal["faster", "not faster", "open"]


@dataclass(frozen=True, slots=True)
class Gain:
    """How many times faster, with an interval, and what that says; over ``blocks`` blocks."""

    ratio: float
    low: float
    high: float
    blocks: int

    @property
    def verdict(self) -> Verdict:
        """``faster`` if all of the interval is above 1 %, ``not faster`` if none is, else ``open``."""
        if math.log(self.low) > LEAST:
            return "faster"
        return "not faster" if math.log(self.high) < LEAST else "open"

    @property
    def speedup(self) -> dict[str, float]:
        """Ratio and interval as documents have them, of a gain whose ``alpha`` is ``measure.effect.ALPHA``."""
        return {"median": self.ratio, "ci95_low": self.low, "ci95_high": self.high}

    @classmethod
    def of(cls, logs: Sequence[float], alpha: float) -> "Gain":
        """The gain of blocks with these log ratios, and the interval that ``alpha`` leaves."""
        middle, low, high = bootstrap_median(logs, alpha)
        return cls(math.exp(middle), math.exp(low), math.exp(high), len(logs))


def measure_gain(
    blocks: Callable[[int, int], Sequence[float]], alpha: float, time_for: Callable[[int], bool] = lambda count: True
) -> list[float]:
    """Log ratios of as many blocks as it takes to say whether it is faster, or of all that there is time for.

    ``blocks(first, count)`` runs them; ``alpha`` is split over the looks. ``time_for(count)`` says whether so many more
    may run; the first look's do.
    """
    logs: list[float] = []
    for enough in LOOKS:
        if logs and not time_for(enough - len(logs)):
            break
        logs += blocks(len(logs), enough - len(logs))
        if Gain.of(logs, alpha / len(LOOKS)).verdict != "open":
            break
    return logs
