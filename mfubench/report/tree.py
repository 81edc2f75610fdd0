"""The modules from the outside in: what each took with all inside it, as profilers show calls."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from mfubench.run import TOGETHER, ModuleRow, Run

from . import format as fmt
from .blocks import Column, Table

LEAST_SHARE = 0.03  # of the step: less is not worth a line


@dataclass(slots=True)
class Node:
    """A module, the rows of it and of all inside it, and its parts by the next piece of their names."""

    rows: list[ModuleRow] = field(default_factory=list)
    parts: dict[str, "Node"] = field(default_factory=lambda: defaultdict(Node))

    def total(self, key: str) -> float:
        """The sum of one number of all rows."""
        return float(sum(getattr(row, key) for row in self.rows))


def module_tree(run: Run) -> list[Table]:
    """Inclusive time, MFU and memory of what has at least LEAST_SHARE of the step; no table without a trace."""
    if not run.trace.get("steps"):
        return []
    lines = list(_lines(_tree(run.modules)))
    peak = run.peak["datasheet_tflops" if run.peak["in_use"] == "datasheet" else "measured_tflops"]

    def totals(key: str, measured: object = True) -> list[float | None]:
        return [node.total(key) if measured else None for _, node in lines]

    times, flops = totals("time_ms"), totals("model_flops", peak and run.flops.get("model"))
    mfu = [done / (peak * time * 1e9) if done and time else None for done, time in zip(flops, times, strict=True)]
    table = Table.of(
        f"Each module with all inside it, where that is at least {LEAST_SHARE:.0%} of the step, its parts below. What "
        "a kernel does for several modules at once stands where they meet.",
        [
            (Column("module"), [name for name, _ in lines]),
            (Column("ms", numeric=True), fmt.column(times)),
            (Column("share %", numeric=True, bar=True), fmt.percents(totals("share"))),
            (Column("MFU %", numeric=True), fmt.percents(mfu)),
            (
                Column("memory MiB", numeric=True),
                fmt.column(totals("memory_bytes", run.memory.get("peak_bytes")), unit=fmt.MEBI),
            ),
        ],
    )
    return [table]


def _tree(rows: list[ModuleRow]) -> Node:
    root = Node()
    for row in rows:
        node = root
        for piece in _path(row.name):
            node = node.parts[piece]
            node.rows.append(row)
    return root


def _path(name: str) -> list[str]:
    """The pieces of a module's name; of several that share a kernel those that all begin with."""
    if TOGETHER not in name:
        return [name] if name.startswith("(") else name.split(".")
    pieces = zip(*(one.split(".") for one in name.split(TOGETHER)), strict=False)
    return [piece for piece, *_ in takewhile(lambda same: len(set(same)) == 1, pieces)] or ["(several modules)"]


def _lines(node: Node, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Modules by their whole names, each before its parts; of those that are as much as their only part, that one."""
    for piece, part in sorted(node.parts.items(), key=lambda item: -item[1].total("time_ms")):
        if part.total("share") < LEAST_SHARE:
            continue
        name = f"{prefix}{piece}"
        if [len(inner.rows) for inner in part.parts.values()] != [len(part.rows)]:
            yield name, part
        yield from _lines(part, f"{name}.")
