"""From pairs of processes to a verdict: how much longer head's step takes, and whether that is within its margin.

What differs from one process to the next, such as where memory lies, is in every one of its steps: so a pair of
processes, one of each side, is one sample, the median over its blocks of head's time over base's. The estimate is the
mean of the samples, its interval Student's. It is looked at after each of ``LOOKS`` pairs, which share the risk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mfubench.measure.effect import ALPHA, LEAST
from mfubench.measure.stats import student_interval

from .rows import Verdict

LOOKS = (4, 8, 16)  # pairs of processes
FAR = 20.0  # of two pairs an interval may reach beyond what a float holds


@dataclass(frozen=True, slots=True)
class PairEstimate:
    """Head's step over base's with its interval, of so many pairs."""

    ratio: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, logs: Sequence[float], alpha: float) -> "PairEstimate":
        """Of the pairs' log ratios, two or more; the interval holds with a probability of 1 - ``alpha``."""
        ratio, low, high = (math.exp(min(max(log, -FAR), FAR)) for log in student_interval(logs, alpha))
        return cls(ratio, low, high, len(logs))

    def verdict(self, margin: float) -> Verdict:
        """FAIL if all of the interval is above the margin, PASS or IMPROVED if all is below, else INCONCLUSIVE."""
        if self.low > 1 + margin:
            return "FAIL"
        if math.log(self.high) < -LEAST:
            return "IMPROVED"
        return "PASS" if self.high < 1 + margin else "INCONCLUSIVE"

    @property
    def as_tuple(self) -> tuple[float, float, float]:
        """As rows have it."""
        return self.ratio, self.low, self.high


def decided(logs: Sequence[float], margin: float, alpha: float = ALPHA) -> PairEstimate | None:
    """The estimate where it is time for a look and the look decides, or where it is the last; else None."""
    if len(logs) not in LOOKS:
        return None
    found = PairEstimate.of(logs, alpha / len(LOOKS))
    return found if found.verdict(margin) != "INCONCLUSIVE" or len(logs) == LOOKS[-1] else None
