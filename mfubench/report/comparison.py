"""The page of a report: the one run's, or several runs side by side and then each one's own part."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mfubench.figures import stacks
from mfubench.run import Run

from . import format as fmt
from .blocks import Block, Chart, Column, Items, Page, Section, Table, known
from .sections import run_page
from .verdict import name, step_time, why_no_mfu

if TYPE_CHECKING:
    from mfubench.comparison import Comparison


def page(runs: Sequence[Run]) -> Page:
    """The content of the report of ``runs``, at least one."""
    if len(runs) == 1:
        return run_page(runs[0])
    from mfubench.comparison import compare  # brings numpy, which one run's report does not need

    parts = [replace(run_page(run), title=f"Run {at}: {name(run)}") for at, run in enumerate(runs, 1)]
    return replace(comparison_page(runs, compare(runs)), parts=parts)


def comparison_page(runs: Sequence[Run], comparison: "Comparison", places: Sequence[str] = ()) -> Page:
    """``runs`` side by side, held against one of them; with the ``places`` where they are, and their own warnings.

    Without places each has a part of its own on the page, which has its warnings.
    """
    from mfubench.comparison import MEASURED_APART

    return Page(
        title=f"{len(runs)} runs side by side",
        headline=_headline(runs, comparison),
        warnings=[
            *(_must_agree(name, values) for name, values in comparison.apart.items()),
            *(f"run {at}: {told}" for at, run in enumerate(runs, 1) if places for told in run.warnings),
        ],
        sections=[
            Section("Comparison", [_table(runs, comparison, places)], brief=True),
            Section("Where the steps go", [_stacks(runs), _ledgers(comparison)], brief=True),
            Section("What differs", [_what_differs(runs)]),
            Section("Method", [Items([MEASURED_APART])]),
        ],
    )


def _headline(runs: Sequence[Run], comparison: "Comparison") -> str:
    if comparison.apart:
        keys = " and ".join(fmt.label(key) for key in comparison.apart)
        return f"{len(runs)} runs that do not compare: {keys} {'differ' if len(comparison.apart) > 1 else 'differs'}"
    at, best = min(enumerate(runs, 1), key=lambda pair: pair[1].step["time_ms"]["median"])
    return (
        f"{len(runs)} runs that compare (device, dtype, mode and data agree); "
        f"the shortest median step is run {at}'s, {_names(runs)[at - 1]}: {step_time(best, 'ms')}"
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """What tells each run from the others: its title, and the axes and overrides in which not all agree."""
    axes: list[dict[str, Any]] = [
        {key: run.workload[key] for key in ("impl", "compile")} | run.workload["overrides"] for run in runs
    ]
    keys = dict.fromkeys(key for own in axes for key in own)
    differing = [key for key in keys if len({str(own.get(key)) for own in axes}) > 1]
    return [
        ", ".join([run.title, *(f"{key}={fmt.value(key, own.get(key, 'default'))}" for key in differing)])
        for run, own in zip(runs, axes, strict=True)
    ]


def _must_agree(key: str, values: list[str]) -> str:
    listed = ", ".join(f"run {at} {value}" for at, value in enumerate(values, 1))
    return f"The runs do not compare: {fmt.label(key)} differs ({listed})."


def _table(runs: Sequence[Run], comparison: "Comparison", places: Sequence[str]) -> Table:
    without = sorted({why for run in runs if (why := why_no_mfu(run))})
    no_energy = sorted({row.energy_not_measured for row in comparison.rows if row.energy_not_measured})
    rows = comparison.rows

    def shares(header: str, key: str, brief: bool = True) -> tuple[Column, list[str]]:
        return Column(header, numeric=True, brief=brief), fmt.percents([getattr(run, key) for run in runs])

    def numbers(
        header: str, values: Sequence[float | None], unit: float = 1, brief: bool = False
    ) -> tuple[Column, list[str]]:
        return Column(header, numeric=True, brief=brief), fmt.column(values, unit=unit)

    ratios = [fmt.interval(ratio.value, ratio.ci95_low, ratio.ci95_high) for ratio in comparison.time_ratios]
    ratios[comparison.baseline] = "baseline"
    return Table.of(
        f"One row a run; ratios are to run {comparison.baseline + 1}."
        + "".join(f" MFU {fmt.not_known(why)}." for why in without)
        + "".join(f" Energy {fmt.not_known(why)}." for why in no_energy),
        known(
            [
                (Column("run"), [str(at) for at, _ in enumerate(runs, 1)]),
                (Column("workload"), _names(runs)),
                *([(Column("where"), list(places))] if places else []),
                (Column("step ms, 95 % interval", numeric=True), [step_time(run) for run in runs]),
                (Column("step time ratio, 95 % interval", numeric=True), ratios),
                (Column("samples/s", numeric=True), fmt.column([run.step["samples_per_s"] for run in runs])),
                numbers("samples/s fed by its loader", [row.fed_samples_per_s for row in rows], brief=True),
                shares("MFU %", "mfu"),
                shares("MFU of measured peak %", "mfu_of_measured_peak"),
                shares("HFU %", "hfu", brief=False),
                shares("HFU of measured peak %", "hfu_of_measured_peak", brief=False),
                numbers("model GFLOP a step", [run.flops["model"] for run in runs], fmt.GIGA),
                numbers("model MFLOP a sample", [row.model_flops_per_sample for row in rows], fmt.MEGA, True),
                numbers("parameters M", [row.num_params for row in rows], fmt.MEGA),
                numbers("peak MiB", [row.peak_bytes for row in rows], fmt.MEBI, True),
                numbers("J a sample", [row.energy_j_per_sample for row in rows]),
            ]
        ),
    )


def _ledgers(comparison: "Comparison") -> Table:
    """The same causes in every run, ms a step, and how many more each has than the baseline."""
    lines, baseline = comparison.ledger, comparison.baseline
    numbers = range(len(comparison.rows))

    def column(header: str, values: list[float]) -> tuple[Column, list[str]]:
        return Column(header, numeric=True), fmt.column([*values, sum(values)], digits=4)

    columns = [
        *(column(f"run {at + 1} ms", [line.ms[at] for line in lines]) for at in numbers),
        *(
            column(f"run {at + 1} - run {baseline + 1} ms", [line.more_ms[at] for line in lines])
            for at in numbers
            if at != baseline
        ),
    ]
    table = Table.of(
        "Where the step time goes in each run, and how it differs from the baseline's. Lines add up to the step time.",
        [(Column("cause"), [*(line.cause for line in lines), "total"]), *columns],
    )
    return replace(table, rows=table.rows[:-1], total=table.rows[-1])


def _stacks(runs: Sequence[Run]) -> Chart:
    listed = ", ".join(f"run {at} {step_time(run, 'ms')}" for at, run in enumerate(runs, 1))
    return Chart("Causes of the step time, run by run", f"The median steps, by cause: {listed}.", stacks(runs))


def _what_differs(runs: Sequence[Run]) -> Block:
    """The keys of workload, environment and peak that are not the same in all runs."""
    rows = []
    for part in ("workload", "environment", "peak"):
        documents = [getattr(run, part) for run in runs]
        for key in dict.fromkeys(key for document in documents for key in document):
            values = [fmt.value(key, document.get(key)) for document in documents]
            if len(set(values)) > 1:
                rows.append([f"{part}: {fmt.label(key)}", *values])
    if not rows:
        return Items(["Nothing in workload, environment and peak."])
    return Table(
        "Workload, environment and peak, where not all runs agree.",
        [Column("key"), *(Column(f"run {at}") for at, _ in enumerate(runs, 1))],
        rows,
    )
