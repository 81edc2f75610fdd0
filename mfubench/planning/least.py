"""The least time of a step on a device's roofline, cause by cause, and what it becomes at a measured run's rates."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from mfubench.attribute.ledger import WHOLE_PHASES, Slices, add_busy, ledger_lines
from mfubench.attribute.roofline import Ceilings
from mfubench.measure.count import Count
from mfubench.run import LedgerLine, Run

NOTHING = 1e-9  # of a step: what rounding leaves of a cause that has none
Kind = str
"""A class of operators, or a phase that is one cause as a whole."""


@dataclass(frozen=True, slots=True)
class Least:
    """A step in which everything that runs takes no longer than the roofline allows: its ledger, and ms by kind."""

    step_ms: float
    ledger: list[LedgerLine]
    by_kind: dict[Kind, float]


def least_step(count: Count, ceilings: Ceilings) -> Least:
    """The least time of what ``count`` has, one group of operators after the other; no waiting for the host is in it.

    A group takes the longer of its hardware FLOPs at the peak of their dtype and its bytes at the bandwidth.
    """
    slices, by_kind = Slices(), defaultdict[Kind, float](float)
    for key, work in count.work.items():
        ms = ceilings.least_ms(work)
        add_busy(slices, key, ms, work, ceilings)
        by_kind[_kind(key.module, key.kind)] += ms
    step_ms = sum(by_kind.values())
    lines = ledger_lines(slices, step_ms) if step_ms else []
    return Least(step_ms, [line for line in lines if abs(line.share) > NOTHING], dict(by_kind))


def _kind(module: str, kind: Kind) -> Kind:
    return WHOLE_PHASES.get(module, kind)


def rates_of(run: Run, least: Least) -> dict[Kind, float]:
    """By kind, which part of its kernels' time ``run`` would have needed at ``least``; both are of the same step.

    Where a kernel beats its floor, it is above 1.
    """
    took = defaultdict[Kind, float](float)
    for row in run.kernels:
        took[_kind(row.module, row.kind)] += row.time_ms
    return {kind: ms / took[kind] for kind, ms in least.by_kind.items() if ms and took[kind]}


def at_rates(least: Least, rates: Mapping[Kind, float]) -> float:
    """Milliseconds of a step's kernels at ``rates``; a kind that has none takes its least."""
    return sum(ms / rates.get(kind, 1.0) for kind, ms in least.by_kind.items())
