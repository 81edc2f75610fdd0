"""Steps of base and head in turns: fresh processes of both, side by side, one of which runs at a time."""

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from statistics import median
from time import monotonic
from typing import Any

from mfubench.errors import MfubenchError
from mfubench.measure.effect import log_ratios
from mfubench.side_by_side import share_out
from mfubench.worker import DONE, Worker

from .decide import decided
from .side import get_ready, take_turn
from .source import Source

BLOCKS = 10  # of a pair: each runs both sides twice, as ABBA and BAAB by turns
TURN_LIMIT_S = 600.0
READY_LIMIT_S = 1800.0  # compiling a deep model takes its minutes
BOTH_AT_ONCE = "; base and head are in memory together, to be timed in turns, so each can have half of it"


class SideBroke(MfubenchError):
    """One side could not be timed; the message names it, and why."""


class SideRefused(SideBroke):
    """It has no such model, or one that does not run: bad input, where it is not held against another."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What a pair of processes found.

    ``log``: the median over blocks of the log of head's step over base's; ``itself``: of base's second turn over its
    first. ``base_ms`` and ``head_ms``: a step, turn by turn.
    """

    log: float
    itself: float
    base_ms: list[float]
    head_ms: list[float]


def pairs(
    base: Source, head: Source, workload: Mapping[str, Any], device: str, *, one_more_in: int | None = None
) -> Generator[Pair]:
    """Pairs without end, each of two fresh processes; head does one step more for every ``one_more_in`` of a turn.

    Raises:
        SideBroke: a process ended, or its model cannot be had or run.
    """
    steps, whole = 0, one_more_in or 1
    while True:
        with closing(_worker(base, device)) as old, closing(_worker(head, device)) as new:
            ready = _both_ready({"base": (base, old), "head": (head, new)}, workload)
            # As many in all pairs, and what is more of them exactly the share that is asked for.
            steps = steps or whole * math.ceil(max(ready.values()) / whole)
            found = _pair(old, new, steps, steps // one_more_in if one_more_in else 0)
        yield found


def until_decided(
    offered: Generator[Pair], margin: float, risk: float, budget_s: float, tell: Callable[[int], None]
) -> list[Pair]:
    """Those of the pairs that are ``offered`` that decide, or as many as the budget has time for, one at least.

    ``tell`` is given how many are done; ``risk`` is the probability with which the interval may be wrong.

    Raises:
        SideBroke: as `pairs` does.
    """
    began, had = monotonic(), list[Pair]()
    with closing(offered):  # ends its processes
        while not had or decided([pair.log for pair in had], margin, risk) is None:
            spent = monotonic() - began
            if had and spent + spent / len(had) > budget_s:
                break
            tell(len(had))
            had.append(next(offered))
    return had


def _worker(side: Source, device: str) -> Worker:
    return Worker(device, place=side.place, resident=True)


def _both_ready(sides: Mapping[str, tuple[Source, Worker]], workload: Mapping[str, Any]) -> dict[str, int]:
    """Steps of a turn as each side wants them; both get ready at once, as nothing is timed yet."""
    found: dict[str, int] = {}

    def get(_free: Worker, name: str) -> None:
        side, worker = sides[name]
        arguments = {"workload": workload, "paths": [str(path) for path in side.paths]}
        told = _done(name, worker, get_ready, arguments, READY_LIMIT_S)
        if "refused" in told:
            raise SideRefused(f"{name}: {told['refused']}{BOTH_AT_ONCE if told.get('exhausted') else ''}")
        found[name] = told["steps"]

    share_out(list(sides), [worker for _, worker in sides.values()], get)
    return found


def _pair(base: Worker, head: Worker, steps: int, more: int) -> Pair:
    times: dict[str, list[float]] = {"base": [], "head": []}

    def turn(name: str, first: int) -> None:
        worker, added = (base, 0) if name == "base" else (head, more)
        told = {"first": first, "steps": steps, "more": added}
        times[name].append(_done(name, worker, take_turn, told, TURN_LIMIT_S))

    for block in range(BLOCKS):
        order = ("base", "head") if block % 2 == 0 else ("head", "base")
        for name in (*order, *reversed(order)):
            turn(name, block * steps)
    old, new = (list(zip(side[::2], side[1::2], strict=True)) for side in times.values())
    logs = log_ratios(new, old)
    return Pair(median(logs), median(math.log(b / a) for a, b in old), times["base"], times["head"])


def _done(name: str, worker: Worker, work: Any, arguments: Mapping[str, Any], limit_s: float) -> Any:
    answer = worker.run(work, arguments, limit_s=limit_s)
    if answer.status != DONE:
        raise SideBroke(f"{name}: {answer.reason}")
    return answer.document
