"""Whether a measured change agrees with a published one, in sign and in size."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import log1p
from typing import Literal

from mfu_models.kunlun.published import Published
from mfubench.comparison import Estimate

from .plan import Kind

Sign = Literal["agrees", "disagrees", "undecided"]
Size = Literal["within the interval", "within a factor of 2", "smaller", "larger"]
FACTOR = 2.0
RULE = (
    "The sign agrees if the whole 95 % interval of the measured change lies on the published side of zero, disagrees "
    "if it lies on the other, and is undecided if zero is inside. Size is judged where the sign agrees: the published "
    "change within the interval; else within a factor of 2, as the logarithm of one ratio over that of the other; else "
    "the measured change is smaller or larger. Counted FLOPs are exact."
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A published change beside the measured one of ``kind``; ``reason`` says what was not judged, and why."""

    step: str
    metric: str
    kind: Kind
    published: float
    printed: str
    source: str
    measured: Estimate | None
    sign: Sign | None
    size: Size | None
    reason: str


def judge(published: Published, kind: Kind, measured: Estimate | None, why_not: str = "") -> Judgement:
    """Hold ``measured`` against ``published``; ``why_not`` is why there is nothing to hold against it."""
    reason = why_not or published.not_comparable
    sign, size = None, None
    if measured is not None and not reason:
        sign, reason = _sign(published.change, measured), published.no_size
        size = _size(published.change, measured) if sign == "agrees" and not reason else None
    facts = {key: value for key, value in asdict(published).items() if key in ("step", "metric", "printed", "source")}
    return Judgement(
        **facts, kind=kind, published=published.change, measured=measured, sign=sign, size=size, reason=reason
    )


def signs(judgements: Iterable[Judgement]) -> Mapping[Sign, int]:
    """How many published signs agree, disagree and are undecided."""
    counts: dict[Sign, int] = {"agrees": 0, "disagrees": 0, "undecided": 0}
    for judgement in judgements:
        if judgement.sign is not None:
            counts[judgement.sign] += 1
    return counts


def _sign(published: float, measured: Estimate) -> Sign:
    toward = sorted((measured.ci95_low * published, measured.ci95_high * published))
    if toward[0] > 0:
        return "agrees"
    return "disagrees" if toward[1] < 0 else "undecided"


def _size(published: float, measured: Estimate) -> Size:
    if measured.ci95_low <= published <= measured.ci95_high:
        return "within the interval"
    ratio = log1p(measured.value) / log1p(published)
    if 1 / FACTOR <= ratio <= FACTOR:
        return "within a factor of 2"
    return "smaller" if ratio < 1 else "larger"
