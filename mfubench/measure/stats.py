"""The median of a few noisy timings, with how far it can be trusted, and whether they have one middle at all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

DIP_LIMIT = 0.53  # of dip times the root of the number of samples
MIN_MODE_RATIO = 1.05
LEVEL, RESAMPLES = 0.95, 2000
TAILS = (0.5, 0.9, 0.99, 0.999)
ROUNDING = 1e-9


def resampled(samples: Sequence[float] | npt.NDArray[np.float64], seed: int = 0) -> npt.NDArray[np.float64]:
    """``RESAMPLES`` resamples of ``samples`` [N], a row each; the same seed draws the same."""
    values = np.asarray(samples, dtype=np.float64)
    drawn: npt.NDArray[np.float64] = values[
        np.random.default_rng(seed).integers(values.size, size=(RESAMPLES, values.size))
    ]
    return drawn


def percentile_interval(drawn: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the middle 95 % of what resamples gave.

    cf. Efron, Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics 7 (1979).
    """
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def tail(samples: Sequence[float]) -> dict[str, float | None]:
    """The values within which the `TAILS` of ``samples`` lie, by percentage, each one of the samples (nearest rank).

    None where there are too few for one of them to lie beyond: 99 % of fewer than 100 is their largest, whatever it is.
    """
    ordered = sorted(samples)
    return {f"{100 * share:g}": _nearest_rank(ordered, share) for share in TAILS}


def _nearest_rank(ordered: Sequence[float], share: float) -> float | None:
    enough = len(ordered) * (1 - share) >= 1 - ROUNDING
    return float(ordered[math.ceil(len(ordered) * share - ROUNDING) - 1]) if enough else None


def median_ci(samples: Sequence[float] | npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """The median and its percentile bootstrap interval ``(median, low, high)``, in the unit of the samples.

    The median of a paired ratio is ``median_ci(before / after)``. One sample gives an interval of no width, which says
    that nothing is known of the spread. The same samples give the same interval.

    Raises:
        ValueError: no samples, or one that is not finite.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"a median needs a flat list of one or more finite samples, got {samples!r}")
    return float(np.median(values)), *percentile_interval(np.median(resampled(values), axis=1))


def bootstrap_median(
    samples: Sequence[float] | npt.NDArray[np.float64], alpha: float = 0.05
) -> tuple[float, float, float]:
    """The median and its two-sided bootstrap interval at 1 - ``alpha``, for few samples and small alphas.

    What resampling would converge to is computed: the k-th sample bounds a resample's median with a binomial
    probability. The plain percentile interval covers too rarely where samples are few, so that its tails are taken as
    far out as Student's t has them; an end lies on a sample, never between two.
      cf. Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69 (2015), 4.4.3;
      Efron, Bootstrap Methods, section 3.

    Raises:
        ValueError: fewer than 2 samples, one that is not finite, or an alpha outside (0, 1).
    """
    values = np.sort(np.asarray(samples, dtype=np.float64))
    n = values.size
    if values.ndim != 1 or n < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs a flat list of two or more finite samples, got {samples!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1")
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile(1 - alpha / 2, n - 1))
    middle = (n + 1) // 2
    below = 0  # samples that the median of a resample lies under with a probability above the tail, counted from 0
    while below + 1 < middle and _at_least(middle, n, (below + 1) / n) <= tail:
        below += 1
    return float(np.median(values)), float(values[below]), float(values[n - 1 - below])


def _at_least(count: int, n: int, share: float) -> float:
    """Probability that at least ``count`` of ``n`` draws fall into a part that holds ``share`` of the mass."""
    return math.fsum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(count, n + 1))


def student_interval(samples: Sequence[float], alpha: float = 0.05) -> tuple[float, float, float]:
    """The mean and Student's two-sided interval at 1 - ``alpha``, of samples that are each a summary of many.

    Raises:
        ValueError: fewer than 2 samples, one that is not finite, or an alpha outside (0, 1).
    """
    values, n = [float(sample) for sample in samples], len(samples)  # a self-check asks this of a dozen 100 000 times
    if n < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"an interval needs a flat list of two or more finite samples, got {samples!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1")
    middle = math.fsum(values) / n
    spread = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1) / n)
    reach = student_quantile(1 - alpha / 2, n - 1) * spread
    return middle, middle - reach, middle + reach


@cache
def student_quantile(probability: float, freedom: int) -> float:
    """Student's t for ``probability`` of at least 1/2 and whole degrees of freedom, by bisection.

    cf. Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Probability of a Student variable within -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


@dataclass(frozen=True, slots=True)
class Modes:
    """Two groups of timings: the middle of each, and which samples are in the slower one."""

    fast: float
    slow: float
    is_slow: tuple[bool, ...]


def bimodal(samples: Sequence[float]) -> Modes | None:
    """The two groups that samples fall into; None unless they surely do, and far enough apart to matter.

    Sure is a dip that samples of a uniform law, the worst of those with one mode, exceed one time in a hundred. Skewed
    samples with one mode and a few that are far off have a small dip.
      cf. Hartigan and Hartigan, The Dip Test of Unimodality, Annals of Statistics 13 (1985).
    """
    values = np.asarray(samples, dtype=np.float64)
    if dip(values) * math.sqrt(values.size) < DIP_LIMIT:
        return None
    threshold = _best_split(np.sort(values))
    slow = values > threshold
    low, high = float(np.median(values[~slow])), float(np.median(values[slow]))
    return Modes(low, high, tuple(map(bool, slow))) if high > MIN_MODE_RATIO * low else None


def dip(samples: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """How far the distribution of ``samples`` is from the nearest one with a single mode, from 0 to 1/4.

    Left of a mode such a distribution is convex, right of it concave; this is half the wider of the two gaps to the
    greatest convex minorant and the least concave majorant, with the mode where that is narrowest. The two sides are
    fitted apart, so that it never exceeds Hartigan's dip.
    """
    x = np.sort(np.asarray(samples, dtype=np.float64))
    n = x.size
    low, high = 0, n - 1  # the left gap grows with the mode's place, the right one shrinks
    while low < high:
        middle = (low + high) // 2
        if _gap(x[: middle + 1], n) < _gap(-x[middle:][::-1], n):
            low = middle + 1
        else:
            high = middle
    places = range(max(0, low - 1), low + 1)
    return min(max(_gap(x[: at + 1], n), _gap(-x[at:][::-1], n)) for at in places) / 2


def _gap(x: npt.NDArray[np.float64], n: int) -> float:
    """Largest distance from the steps of a distribution function, each 1/n high, down to its convex minorant."""
    below = np.arange(x.size) / n
    hull: list[int] = []
    for at in range(x.size):
        while len(hull) > 1 and _turns_down(x, below, hull[-2], hull[-1], at):
            hull.pop()
        hull.append(at)
    return float(np.max(below + 1 / n - np.interp(x, x[hull], below[hull])))


def _turns_down(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], a: int, b: int, c: int) -> bool:
    return bool((y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a]))


def _best_split(x: npt.NDArray[np.float64]) -> float:
    """The value below which the first of two groups ends, so that the spread within both is least (Otsu)."""
    first = np.arange(1, x.size)
    means = np.cumsum(x)[:-1] / first, (x.sum() - np.cumsum(x)[:-1]) / (x.size - first)
    between = first * (x.size - first) * (means[1] - means[0]) ** 2
    return float(x[int(np.argmax(between))])
