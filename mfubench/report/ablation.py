"""An ablation as a page: the road, each switch taken out of the full model, and what is published beside both."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from . import format as fmt
from .blocks import Block, Chart, Column, Facts, Items, Page, Section, Table, known

if TYPE_CHECKING:
    from mfubench.ablate.document import Ablation, Change, Step
    from mfubench.ablate.judge import Judgement
    from mfubench.comparison import Estimate, Row

METRICS = {
    "samples_per_s": "samples/s",
    "mfu": "MFU",
    "model_flops_per_sample": "model FLOPs a sample",
}
STATUS = {"out_of_memory": "out of memory", "not_reached": "not reached"}
INTERVALS = "In brackets 95 % intervals."
Number = Callable[["Row"], float | None]


def ablation_page(ablation: "Ablation") -> Page:
    """Everything that a report says about ``ablation``, also where it is not complete."""
    road = [step for step in ablation.steps if step.kind == "road"]
    out = [change for change in ablation.changes if change.kind == "leave_one_out"]
    steps = {step.name: step for step in ablation.steps}
    workload = {key: value for key, value in ablation.workload.items() if value is not None}
    charts = _charts(ablation)
    return Page(
        title=_title(ablation),
        headline=_headline(ablation),
        warnings=ablation.warnings,
        sections=[
            Section("The road, one switch a step", [_road(road, ablation), *charts["road"]], brief=True),
            Section("Each switch in the full model", [_leave_one_out(out, steps, ablation)], brief=True),
            Section("The whole road, and the noise floor", [_whole(ablation)], brief=True),
            Section("Beside what is published", [_published(ablation), *charts["published"]], brief=True),
            Section(
                "The sources, and what they leave open",
                [Facts(list(ablation.sources.items())), Items(ablation.contradictions)],
            ),
            Section("Not measured", [Items(ablation.not_measured or ["Nothing was left out."])]),
            Section("Method", [Items([ablation.method, ablation.rule])]),
            Section("Workload", [Facts.of(workload)]),
            Section("Peak", [Facts.of(ablation.peak)]),
            Section("Environment", [Facts.of(ablation.environment)]),
        ],
    )


def _title(ablation: "Ablation") -> str:
    given = ablation.identity
    return f"Ablation of {given['model']} {given['size']}, {given['mode']}, {given['dtype']}"


def _headline(ablation: "Ablation") -> str:
    where = str(ablation.environment.get("device_name") or ablation.identity["device"])
    whole = next((change for change in ablation.changes if change.kind == "whole"), None)
    done = sum(step.status == "done" for step in ablation.steps)
    parts = [f"{done} of {len(ablation.steps)} settings measured on {where}"]
    if whole is not None and whole.relative:
        reached = ", ".join(f"{words} {_change(whole, metric)}" for metric, words in METRICS.items())
        parts.append(f"from {whole.before} to the full {ablation.identity['model']}: {reached}")
    parts.append(_agreement(ablation))
    return "; ".join(part for part in parts if part)


def _agreement(ablation: "Ablation") -> str:
    counts = ablation.signs("road")
    if not sum(counts.values()):
        return ""
    return (
        f"of {sum(counts.values())} published changes of single steps the sign agrees with {counts['agrees']}, "
        f"disagrees with {counts['disagrees']} and is undecided for {counts['undecided']}"
    )


def _road(steps: Sequence["Step"], ablation: "Ablation") -> Table:
    changes = [ablation.change("road", step.name) for step in steps]
    columns = [
        (Column("step"), [step.name for step in steps]),
        (Column("samples/s", numeric=True), _throughput(steps)),
        _changes("change of samples/s", "samples_per_s", changes),
        *_columns(steps),
    ]
    return Table.of(
        f"{INTERVALS} Each step turns on one switch more than the one above, the last is the full model. A change is "
        "relative to the step before, timed in turn with it." + _absent(steps),
        columns,
    )


def _leave_one_out(changes: Sequence["Change"], steps: Mapping[str, "Step"], ablation: "Ablation") -> Table:
    without = [steps[change.before] for change in changes]
    columns = [
        (Column("switch taken out"), [change.name.removeprefix("+") for change in changes]),
        (Column("samples/s without it", numeric=True), _throughput(without)),
        _changes("change of samples/s with it", "samples_per_s", changes),
        _changes("change of MFU with it", "mfu", changes, brief=False),
        _changes("change of FLOPs a sample with it", "model_flops_per_sample", changes, brief=False),
        *_columns(without),
    ]
    return Table.of(
        f"{INTERVALS} The full model without one switch, and what the switch then brings, relative: the full model "
        "held against it, timed in turn. Utilisation, FLOPs, parameters and memory are those of the model without it.",
        columns,
    )


def _throughput(steps: Sequence["Step"]) -> list[str]:
    return [STATUS[step.status] if step.row is None else _interval(step.row.samples_per_s) for step in steps]


def _columns(steps: Sequence["Step"]) -> list[tuple[Column, list[str]]]:
    """Utilisation, work and memory of each step; a column that no step has a number for is left out."""

    def numbers(header: str, read: Number, unit: float = 1, brief: bool = True) -> tuple[Column, list[str]]:
        values = [None if step.row is None else read(step.row) for step in steps]
        return Column(header, numeric=True, brief=brief), fmt.column(values, unit=unit)

    def shares(header: str, key: str, brief: bool = True) -> tuple[Column, list[str]]:
        found: list[Estimate | None] = [None if step.row is None else getattr(step.row, key) for step in steps]
        shown = [fmt.NOT_KNOWN if each is None else _percent(each) for each in found]
        return Column(header, numeric=True, brief=brief), shown

    columns = [
        shares("MFU %", "mfu"),
        shares("MFU of measured peak %", "mfu_of_measured_peak"),
        shares("HFU %", "hfu", brief=False),
        shares("HFU of measured peak %", "hfu_of_measured_peak", brief=False),
        numbers("model MFLOP a sample", lambda row: row.model_flops_per_sample, fmt.MEGA),
        numbers("parameters M", lambda row: row.num_params, fmt.MEGA),
        numbers("of these dense M", lambda row: row.dense_params, fmt.MEGA, brief=False),
        numbers("peak MiB", lambda row: row.peak_bytes, fmt.MEBI),
        numbers("J a sample", lambda row: row.energy_j_per_sample),
    ]
    return known(columns)


def _absent(steps: Sequence["Step"]) -> str:
    """What no step has a number for, in a sentence."""
    rows = [step.row for step in steps if step.row is not None]
    if not rows:
        return ""
    missing = [] if any(row.mfu for row in rows) else ["MFU and HFU against a datasheet"]
    missing += [] if any(row.energy_j_per_sample is not None for row in rows) else ["energy"]
    return f" Not measured: {', '.join(missing)}; the reasons are below." if missing else ""


def _changes(
    header: str, metric: str, changes: Sequence["Change | None"], brief: bool = True
) -> tuple[Column, list[str]]:
    cells = ["" if change is None else _change(change, metric) for change in changes]
    return Column(header, numeric=True, brief=brief), cells


def _change(change: "Change", metric: str) -> str:
    found = change.relative.get(metric)
    if found is None:
        return STATUS.get(change.status, fmt.NOT_KNOWN)
    return fmt.change(found.value, found.ci95_low, found.ci95_high)


def _whole(ablation: "Ablation") -> Block:
    pairs = []
    for change in ablation.changes:
        if change.kind == "whole":
            pairs += [(f"{change.before} to {change.after}, {METRICS[key]}", _change(change, key)) for key in METRICS]
        elif change.kind == "noise_floor":
            pairs.append(("The full model against itself, samples/s", _change(change, "samples_per_s")))
    return Facts(pairs)


def _published(ablation: "Ablation") -> Table:
    """One row a published number; the measured ones on the road and in the full model beside it."""
    rows = ablation.published_rows()
    firsts = [next(iter(row.values())) for row in rows]
    on_the_road = [row.get("road") or row.get("whole") for row in rows]
    in_the_full_model = [row.get("leave_one_out") for row in rows]
    return Table.of(
        "The relative change that each switch makes, on over off; published changes are turned round where the source "
        "gives off over on. Published on B200 at production sizes: on another device or size a difference can be real.",
        [
            (Column("switch"), [each.step for each in firsts]),
            (Column("metric"), [METRICS[each.metric] for each in firsts]),
            (Column("published", numeric=True), [fmt.change(*[each.published] * 3) for each in firsts]),
            (Column("on the road", numeric=True), list(map(_measured, on_the_road))),
            (Column("verdict"), list(map(_verdict, on_the_road))),
            (Column("in the full model", numeric=True), list(map(_measured, in_the_full_model))),
            (Column("verdict there"), list(map(_verdict, in_the_full_model))),
            (Column("as printed", brief=False), [each.printed for each in firsts]),
            (Column("source", brief=False), [each.source for each in firsts]),
        ],
    )


def _charts(ablation: "Ablation") -> dict[str, list[Chart]]:
    """The charts by the section that they stand in; those that there are numbers for."""
    from mfubench.ablate.figures import published, utilisation

    found = {
        "road": ("MFU step by step", "MFU of each step of the road with its 95 % interval", utilisation(ablation)),
        "published": (
            "Measured and published changes",
            "What each switch changes, with its 95 % interval, beside what is published",
            published(ablation),
        ),
    }
    return {
        key: [Chart(title, f"{summary}. The numbers are in the table.", figure)] if figure else []
        for key, (title, summary, figure) in found.items()
    }


def _measured(judgement: "Judgement | None") -> str:
    if judgement is None or judgement.measured is None:
        return "" if judgement is None else fmt.NOT_KNOWN
    return fmt.change(judgement.measured.value, judgement.measured.ci95_low, judgement.measured.ci95_high)


def _verdict(judgement: "Judgement | None") -> str:
    if judgement is None:
        return ""
    if judgement.sign is None:
        return judgement.reason if judgement.measured is None else f"not comparable: {judgement.reason}"
    size = f", {judgement.size}" if judgement.size else ""
    why = f"; size not comparable: {judgement.reason}" if judgement.reason and judgement.sign == "agrees" else ""
    return f"sign {judgement.sign}{size}{why}"


def _interval(found: "Estimate") -> str:
    return fmt.interval(found.value, found.ci95_low, found.ci95_high)


def _percent(found: "Estimate") -> str:
    at, low, high = fmt.percents([found.value, found.ci95_low, found.ci95_high])
    return f"{at} [{low}, {high}]"
