"""The law of what compute buys, NE(C) = a - eta * ln(C / C0), and how far its numbers can be trusted.

C0 is the geometric mean of a model's points, so that ``a`` is the NE in their middle. Kunlun (arXiv 2602.10016) and
HSTU (arXiv 2402.17152) fit their curves so; the ratio of two etas is what Kunlun calls scaling efficiency.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from mfubench.data.histories import Array
from mfubench.measure.stats import LEVEL, RESAMPLES, percentile_interval, student_quantile

from .entropy import Floats, entropy
from .names import LEAST_POINTS

AT_ONCE = 4_000_000  # numbers drawn at a time, which bounds the memory
Interval = tuple[float, float, float]
"""A value, and the low and high end of its 95 % interval."""


@dataclass(frozen=True, slots=True)
class Points:
    """The NE of P points, each the mean over its seeds, and the same in B resamples.

    ``ne`` float64 [P], ``drawn`` float64 [B, P]; B is 0 where nothing can be drawn.
    """

    ne: Floats
    drawn: Floats

    def of(self, places: Sequence[int]) -> "Points":
        """Some of the points."""
        return Points(self.ne[list(places)], self.drawn[:, list(places)])

    def intervals(self) -> "list[Interval]":
        """Each point's NE."""
        return [interval(value, drawn) for value, drawn in zip(self.ne, self.drawn.T, strict=True)]


def resample(
    losses: Sequence[Sequence[npt.NDArray[np.float32]]],
    labels: Array,
    users: Array,
) -> Points:
    """The NE of points from ``losses[point][seed]`` [N], the log losses of the same N impressions.

    ``labels`` [N] are 0 or 1, ``users`` [N] whose impression each is. A resample draws users with replacement, with all
    their impressions and for all points alike, as all were evaluated on the same; so what is easy or hard about a user
    falls out of a difference of points. To each point it adds what the choice of seeds does: the mean of as many
    deviations of a seed from its point's mean as the point has seeds, drawn from those of all points together, because
    two or three seeds of one point tell little of their spread. They are widened by the root of K / (K - 1), as K
    seeds lie nearer to their own mean than to the true one, and as far as Student's t is wider than the normal law.
      cf. Davison and Hinkley, Bootstrap Methods and their Application (1997), 2.4 and 3.8.
    """
    owners = np.unique(users, return_inverse=True)[1]
    num_users = int(owners.max()) + 1
    flat = [each for point in losses for each in point]
    sums = np.stack([np.bincount(owners, weights=each, minlength=num_users) for each in flat])
    counts = np.bincount(owners, minlength=num_users).astype(np.float64)
    positives = np.bincount(owners, weights=labels, minlength=num_users)
    point_of = np.repeat(np.arange(len(losses)), [len(point) for point in losses])
    averaging = (point_of == np.arange(len(losses))[:, None]) / np.bincount(point_of)[:, None]  # [P, trainings]
    ne = sums.sum(axis=1) / counts.sum() / entropy(positives.sum() / counts.sum())
    rng = np.random.default_rng(0)
    parts = []
    for size in _pieces(RESAMPLES, num_users):
        drawn = rng.integers(num_users, size=(size, num_users)) + num_users * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * num_users).reshape(size, num_users).astype(np.float64)
        shown, clicked = weights @ counts, weights @ positives
        usable = (clicked > 0) & (clicked < shown)  # with one label only there is no entropy to divide by
        shown, clicked, weights = shown[usable], clicked[usable], weights[usable]
        parts.append(weights @ sums.T / (shown * entropy(clicked / shown))[:, None])
    means, drawn_means = averaging @ ne, np.concatenate(parts) @ averaging.T
    return Points(means, drawn_means + _seed_noise(ne - means[point_of], point_of, len(drawn_means), rng))


def _pieces(resamples: int, num_users: int) -> list[int]:
    size = max(1, min(resamples, AT_ONCE // num_users))
    return [min(size, resamples - at) for at in range(0, resamples, size)]


def _seed_noise(deviations: Floats, point_of: Array, size: int, rng: np.random.Generator) -> Floats:
    """What seeds drawn anew add to each point's mean in ``size`` resamples: [size, P]; 0 where no point has two."""
    seeds = np.bincount(point_of)
    freedom = int((seeds - 1).sum())
    noise = np.zeros((size, len(seeds)))
    if not freedom:
        return noise
    own = seeds[point_of]
    tail = (1 + LEVEL) / 2
    pool = (deviations * np.sqrt(own / np.maximum(own - 1, 1)))[own > 1]
    pool *= student_quantile(tail, freedom) / NormalDist().inv_cdf(tail)
    for point, number in enumerate(seeds):
        noise[:, point] = pool[rng.integers(len(pool), size=(size, number))].mean(axis=1)
    return noise


def interval(value: float, drawn: Floats) -> Interval:
    """The value and the middle 95 % of what was drawn; the value alone, thrice, where nothing was."""
    if not len(drawn):
        return float(value), float(value), float(value)
    return float(value), *percentile_interval(drawn)


@dataclass(frozen=True, slots=True)
class Law:
    """A fitted law over ``points`` points. ``per_decade`` is the NE that ten times the compute takes off.

    ``residual`` is the root of the squared residuals' sum over the points less two; it and ``r2`` are None with two
    points, which every line passes through. It holds ``between`` the least and the most compute. ``slopes`` [B] are
    the etas of the resamples, ``levels`` [B] their a.
    """

    points: int
    a: Interval
    eta: Interval
    c0: float
    per_decade: Interval
    r2: float | None
    residual: float | None
    between: tuple[float, float]
    slopes: Floats = field(repr=False)
    levels: Floats = field(repr=False)

    @property
    def falls(self) -> bool:
        """Whether more compute surely lowers the NE: eta's interval lies above 0."""
        return self.eta[1] > 0


def fit_law(compute: npt.ArrayLike, points: Points) -> Law | None:
    """The law through points at ``compute`` [P], by ordinary least squares; None with fewer than two computes."""
    c = np.asarray(compute, dtype=np.float64)
    if len(np.unique(c)) < 2:
        return None
    middle = float(np.log(c).mean())
    x = np.log(c) - middle
    slope = float(-x @ points.ne / (x @ x))
    slopes: Floats = -points.drawn @ x / (x @ x)
    level = float(points.ne.mean())
    rest = points.ne - (level - slope * x)
    levels: Floats = points.drawn.mean(axis=1)
    checked = len(c) >= LEAST_POINTS
    spread = float(((points.ne - level) ** 2).sum())
    return Law(
        points=len(c),
        a=interval(level, levels),
        eta=interval(slope, slopes),
        c0=float(np.exp(middle)),
        per_decade=interval(slope * log(10), slopes * log(10)),
        r2=1 - float(rest @ rest) / spread if checked and spread > 0 else None,
        residual=sqrt(float(rest @ rest) / (len(c) - 2)) if checked else None,
        between=(float(c.min()), float(c.max())),
        slopes=slopes,
        levels=levels,
    )


def efficiency(law: Law, baseline: Law) -> tuple[Interval | None, str]:
    """How many times the baseline's eta a law's is, from the same resamples; or None, and why."""
    few = [law for law in (law, baseline) if law.points < LEAST_POINTS]
    if few:
        return None, f"{few[0].points} sizes: nothing checks the law; a ratio of slopes needs {LEAST_POINTS} of each"
    if not baseline.falls:
        return None, "the baseline's eta has an interval that is not above 0: nothing to divide by"
    return interval(law.eta[0] / baseline.eta[0], law.slopes / baseline.slopes), ""


def lead(law: Law, baseline: Law) -> tuple[float | None, Interval | None]:
    """A compute that both laws hold at, and how much lower the NE of ``law`` is there than the baseline's.

    The middle of what both cover, on a log axis. Neither is known where they cover nothing in common: a law is not
    drawn out beyond its points. A ratio of slopes does not tell this: a model may gain faster and still be behind.
    """
    low, high = (end(law.between[at], baseline.between[at]) for at, end in enumerate((max, min)))
    if low > high:
        return None, None
    middle = sqrt(low * high)

    def at_middle(one: Law, level: Any, slope: Any) -> Any:
        return level - slope * log(middle / one.c0)

    value = at_middle(baseline, baseline.a[0], baseline.eta[0]) - at_middle(law, law.a[0], law.eta[0])
    drawn = at_middle(baseline, baseline.levels, baseline.slopes) - at_middle(law, law.levels, law.slopes)
    return middle, interval(value, drawn)


def document_of(law: Law | None) -> dict[str, Any]:
    """What a fit says of a law, ready for JSON."""
    names = ("a", "eta", "c0", "per_decade", "r2", "residual")
    return {name: None if law is None else getattr(law, name) for name in names}
