"""The numbers of an ablation's charts."""

from collections.abc import Iterator

from mfubench.comparison import Estimate
from mfubench.figures import Dot, Dots

from .document import Ablation
from .judge import Judgement
from .plan import Kind

SERIES: dict[Kind, str] = {"road": "on the road", "leave_one_out": "in the full model"}
WORDS = {"samples_per_s": "samples/s", "mfu": "MFU", "model_flops_per_sample": "FLOPs a sample"}


def utilisation(ablation: Ablation) -> Dots | None:
    """MFU of each step of the road, against the datasheet where there is one, else against the measured peak."""
    rows = [(step.name, step.row) for step in ablation.steps if step.kind == "road" and step.row is not None]
    sheet = all(row.mfu is not None for _, row in rows)
    found = [(name, row.mfu if sheet and row.mfu else row.mfu_of_measured_peak) for name, row in rows]
    peak = "the datasheet's dense peak" if sheet else "the measured GEMM peak"
    dots = [_dot(name, "MFU", value, f"{name}: MFU {value.value:.1%}") for name, value in found if value is not None]
    return Dots(f"MFU of {peak}", dots, ratios=False) if dots else None


def published(ablation: Ablation) -> Dots | None:
    """Each published change that compares, with the measured ones beside it, as ratios of on over off."""
    dots = [dot for judgements in ablation.published_rows() for dot in _row(judgements)]
    return Dots("times as much with the switch on as with it off", dots, ratios=True) if dots else None


def _row(judgements: dict[Kind, Judgement]) -> Iterator[Dot]:
    """One published number and what was measured of it; nothing where that does not compare, or is the whole road."""
    judged = {kind: each for kind, each in judgements.items() if kind in SERIES and each.sign is not None}
    for at, (kind, each) in enumerate(judged.items()):
        row, exact = f"{each.step} {WORDS[each.metric]}", Estimate(each.published, each.published, each.published)
        if at == 0:
            yield _ratio(row, "published", exact, f"{row}, published: {each.printed}, {each.source}")
        if each.measured is not None:
            yield _ratio(row, SERIES[kind], each.measured, f"{row}, {SERIES[kind]}: {each.measured.value:+.1%}")


def _ratio(row: str, series: str, change: Estimate, about: str) -> Dot:
    return _dot(row, series, Estimate(1 + change.value, 1 + change.ci95_low, 1 + change.ci95_high), about)


def _dot(row: str, series: str, value: Estimate, about: str) -> Dot:
    return Dot(row, series, value.value, value.ci95_low, value.ci95_high, about)
