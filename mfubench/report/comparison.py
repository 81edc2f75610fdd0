"""The page of a report: the one run's, or several runs side by side and then each one's own part."""

from collections.abc import Sequence
from dataclasses import replace

from mfubench.figures import stacks
from mfubench.run import Run, family_place

from . import format as fmt
from .blocks import Block, Chart, Column, Items, Page, Section, Table
from .sections import run_page
from .verdict import device, name, step_time, why_no_mfu


def page(runs: Sequence[Run]) -> Page:
    """The content of the report of ``runs``, at least one."""
    if len(runs) == 1:
        return run_page(runs[0])
    apart = differences(runs)
    return Page(
        title=f"{len(runs)} runs side by side",
        headline=_headline(runs, apart),
        warnings=[_must_agree(name, values) for name, values in apart.items()],
        sections=[
            Section("Comparison", [_table(runs)], brief=True),
            Section("Where the steps go", [_stacks(runs), _causes(runs)]),
            Section("What differs", [_what_differs(runs)]),
        ],
        parts=[replace(run_page(run), title=f"Run {at}: {name(run)}") for at, run in enumerate(runs, 1)],
    )


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What must agree for runs to compare and does not, with the value of each run."""
    values = {
        "device": [device(run) for run in runs],
        **{key: [str(run.workload[key]) for run in runs] for key in ("dtype", "mode", "data_hash")},
    }
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def _headline(runs: Sequence[Run], apart: dict[str, list[str]]) -> str:
    if apart:
        keys = " and ".join(fmt.label(key) for key in apart)
        return f"{len(runs)} runs that do not compare: {keys} {'differ' if len(apart) > 1 else 'differs'}"
    at, best = min(enumerate(runs, 1), key=lambda pair: pair[1].step["time_ms"]["median"])
    return (
        f"{len(runs)} runs that compare (device, dtype, mode and data agree); "
        f"the shortest median step is run {at}'s, {name(best)}: {step_time(best, 'ms')}"
    )


def _must_agree(key: str, values: list[str]) -> str:
    listed = ", ".join(f"run {at} {value}" for at, value in enumerate(values, 1))
    return f"The runs do not compare: {fmt.label(key)} differs ({listed})."


def _table(runs: Sequence[Run]) -> Table:
    without = sorted({why for run in runs if (why := why_no_mfu(run))})

    def shares(header: str, key: str, brief: bool = True) -> tuple[Column, list[str]]:
        return Column(header, numeric=True, brief=brief), fmt.percents([getattr(run, key) for run in runs])

    gflop = fmt.column([run.flops["model"] for run in runs], unit=fmt.GIGA)
    return Table.of(
        "One row a run." + "".join(f" MFU {fmt.not_known(why)}." for why in without),
        [
            (Column("run"), [str(at) for at, _ in enumerate(runs, 1)]),
            (Column("workload"), [name(run) for run in runs]),
            (Column("step ms, 95 % interval", numeric=True), [step_time(run) for run in runs]),
            (Column("samples/s", numeric=True), fmt.column([run.step["samples_per_s"] for run in runs])),
            shares("MFU %", "mfu"),
            shares("MFU of measured peak %", "mfu_of_measured_peak"),
            (Column("model GFLOP a step", numeric=True, brief=False), gflop),
            shares("HFU %", "hfu", brief=False),
        ],
    )


def _stacks(runs: Sequence[Run]) -> Chart:
    listed = ", ".join(f"run {at} {step_time(run, 'ms')}" for at, run in enumerate(runs, 1))
    return Chart("Causes of the step time, run by run", f"The median steps, by cause: {listed}.", stacks(runs))


def _causes(runs: Sequence[Run]) -> Table:
    """The ledgers side by side, a line that a run does not have as n/a."""
    ledgers = [{line.cause: line.ms for line in run.ledger} for run in runs]
    causes = sorted({cause for ledger in ledgers for cause in ledger}, key=lambda cause: (family_place(cause), cause))
    return Table.of(
        "Milliseconds of the median step by cause.",
        [
            (Column("cause"), causes),
            *(
                (Column(f"run {at}", numeric=True), fmt.column([ledger.get(cause) for cause in causes], digits=4))
                for at, ledger in enumerate(ledgers, 1)
            ),
        ],
    )


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
