"""The median of a few noisy timings, with how far it can be trusted, and whether they have one middle at all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DIP_LIMIT = 0.53  # of dip times the root of the number of samples
MIN_MODE_RATIO = 1.05


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


@dataclass(frozen=True, slots=True)
class Modes:
    """Two groups of timings: the middle of each, and which samples are in the slower one."""

    fast: float
    slow: float
    is_slow: tuple[bool, ...]


def bimodal(samples: Sequence[float]) -> Modes | None:
    """The two groups that samples fall into; None unless they surely do, and far enough apart to matter.

    Sure is a dip that a uniform law, of all laws with one mode the worst, exceeds one time in a hundred. Skewed samples
    with one mode and a few that are far off have a small dip.
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

    Left of a mode such a distribution is convex, right of it concave; the dip is half the wider of the two gaps to the
    greatest convex minorant and the least concave majorant, with the mode where that is narrowest.
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
