"""What the ranks of a job reached, and what they say to each other."""

from mfubench.run import Run

from . import format as fmt
from .blocks import Column, Section, Table


def ranks_section(run: Run) -> list[Section]:
    """The section; none for a run of one process alone."""
    if run.parallel is None:
        return []
    return [Section("Ranks", [*_ranks(run), *_collectives(run)], brief=True)]


def together(run: Run) -> str:
    """What all ranks reach, for a sentence about one of them; nothing where there is one alone."""
    if run.parallel is None or not run.ranks:
        return ""
    told = f"its {run.world_size} ranks together {fmt.number(run.parallel['samples_per_s'])} samples/s"
    mfu = run.parallel["mfu"]
    return f"; {told}" + ("" if mfu is None else f" at an MFU of {fmt.percent(mfu)}")


def _ranks(run: Run) -> list[Table]:
    rows = run.ranks
    if not rows:
        return []

    def numbers(header: str, key: str, unit: float = 1, brief: bool = True) -> tuple[Column, list[str]]:
        return Column(header, numeric=True, brief=brief), fmt.column([row[key] for row in rows], unit=unit)

    hidden = [row["communication_ms"] - row["exposed_ms"] for row in rows]
    return [
        Table.of(
            "Each rank's own step; all else in this report is rank 0's. Exposed: the step waits for other ranks and "
            "does nothing else; hidden: they talk while it works. In a collective all wait for the last to come, so "
            "the rank that waits least may be the one that the others wait for.",
            [
                (Column("rank", numeric=True), [str(row["rank"]) for row in rows]),
                (Column("host"), [row["host"] for row in rows]),
                (Column("device", brief=False), [row["device"] for row in rows]),
                numbers("step ms", "step_ms"),
                numbers("samples/s", "samples_per_s"),
                numbers("model GFLOP", "model_flops", fmt.GIGA),
                (Column("MFU %", numeric=True), fmt.percents([row["mfu"] for row in rows])),
                (
                    Column("of measured peak %", numeric=True),
                    fmt.percents([row["mfu_of_measured_peak"] for row in rows]),
                ),
                numbers("exposed ms", "exposed_ms"),
                (Column("hidden ms", numeric=True), fmt.column(hidden)),
                numbers("peak MiB", "peak_bytes", fmt.MEBI),
            ],
            rest="ranks",
        )
    ]


def _collectives(run: Run) -> list[Table]:
    assert run.parallel is not None
    rows = sorted(run.parallel["collectives"], key=lambda row: -row["bytes"])
    if not rows:
        return []
    return [
        Table.of(
            f"What rank 0 says and hears in a step, through {run.parallel['backend']}: of each call the larger of what "
            "it gives and what it gets.",
            [
                (Column("collective"), [row["name"] for row in rows]),
                (Column("calls", numeric=True), fmt.column([row["calls"] for row in rows])),
                (Column("MB", numeric=True), fmt.column([row["bytes"] for row in rows], unit=fmt.MEGA)),
            ],
            rest="collectives",
        )
    ]
