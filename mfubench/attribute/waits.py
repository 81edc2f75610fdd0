"""When the ranks of a job talk, and which of that time no work hides: what a trace says of it.

On a GPU a collective is a kernel on a stream of its own. On a CPU it runs in threads of its backend, and the thread of
the step shows nothing while it waits for one.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from mfubench.measure.classify import communicates

WAIT = "waits for ranks"  # in the thread of the step
_BACKENDS = re.compile(r"^(gloo|mpi|ucc):")  # whose threads name what they run so
_CONTAINERS = ("autograd::engine::", "torch::autograd::")  # operators by their names, which hold the hooks that talk
Interval = tuple[float, float]


def of_a_backend(name: object) -> bool:
    """Whether a span of the host is a collective in a thread of its backend."""
    return isinstance(name, str) and bool(_BACKENDS.match(name))


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time, in intervals that are apart, in their order."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def overlaps(interval: Interval, apart: Sequence[Interval]) -> Iterator[tuple[int, Interval]]:
    """The parts of ``interval`` that are in one of ``apart``, which are in order, and in which of them."""
    start, end = interval
    place = max(0, bisect_right(apart, (start, float("inf"))) - 1)
    while place < len(apart) and apart[place][0] < end:
        part = (max(start, apart[place][0]), min(end, apart[place][1]))
        if part[0] < part[1]:
            yield place, part
        place += 1


def waits(events: Sequence[dict[str, Any]], talking: Sequence[Interval]) -> list[dict[str, Any]]:
    """Spans in which a thread with these ``events`` runs no operator while its ranks talk.

    They nest among the events: none crosses the beginning or end of one.
    """
    busy = merged(_interval(event) for event in events if _works(event))
    cuts = sorted({time for event in events for time in _interval(event)})
    found = []
    for interval in talking:
        for start, end in _without(interval, busy):
            inside = cuts[bisect_right(cuts, start) : bisect_left(cuts, end)]
            edges = [start, *inside, end]
            found += [
                {"name": WAIT, "cat": "user_annotation", "ph": "X", "ts": at, "dur": until - at}
                for at, until in pairwise(edges)
            ]
    return found


def _interval(event: dict[str, Any]) -> Interval:
    return event["ts"], event["ts"] + event["dur"]


def _works(event: dict[str, Any]) -> bool:
    name = event["name"]
    if communicates(name):
        return True  # the call that begins it, or waits for it, is communication by its own name
    return event["cat"] == "cpu_op" and "::" in name and not name.startswith(_CONTAINERS)


def _without(interval: Interval, apart: Sequence[Interval]) -> Iterator[Interval]:
    """What is left of ``interval`` outside all of ``apart``."""
    at, end = interval
    for _, (start, until) in overlaps(interval, apart):
        if at < start:
            yield at, start
        at = until
    if at < end:
        yield at, end
