"""The median of a few noisy timings, with how far it can be trusted."""

from collections.abc import Sequence

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
