"""The median of a few noisy timings, with how far it can be trusted."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt


def median_ci(
    samples: Sequence[float] | npt.NDArray[np.float64], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The median and its percentile bootstrap interval ``(median, low, high)``, in the unit of the samples.

    The median of a paired ratio is ``median_ci(before / after)``. One sample gives an interval of no width, which says
    that nothing is known of the spread. The same seed gives the same interval.
      cf. Efron, Bootstrap Methods: Another Look at the Jackknife, Annals of Statistics 7 (1979).

    Raises:
        ValueError: no samples, one that is not finite, or a level outside (0, 1).
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"a median needs a flat list of one or more finite samples, got {samples!r}")
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1")
    draws = np.random.default_rng(seed).integers(values.size, size=(resamples, values.size))
    tail = 50 * (1 - level)
    low, high = np.percentile(np.median(values[draws], axis=1), [tail, 100 - tail])
    return float(np.median(values)), float(low), float(high)


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
