"""Traces written by hand: the events of a profiler's trace, and a tracker that knows what is said."""

from collections.abc import Mapping

from torch import nn

from mfubench.attribute.attribution import Attribution
from mfubench.attribute.join import ENGINE as NODE
from mfubench.attribute.join import attribute
from mfubench.measure.compiled import Compilation
from mfubench.measure.scopes import Scope
from mfubench.measure.trace import STEP_PREFIX, Trace

HOST, ENGINE = 1, 2  # threads
STEP = f"{STEP_PREFIX}0"


class Known:
    """Stands in for a tracker: scopes by index, owners of autograd nodes by number, names of modules."""

    def __init__(self, *scopes: Scope, owners: Mapping[int, int], names: Mapping[nn.Module, str] | None = None) -> None:
        self.scopes, self.owners, self.names = list(scopes), owners, names or {}

    def owner_of(self, number: int) -> Scope | None:
        return self.scopes[self.owners[number]] if number in self.owners else None


def span(
    name: str, start: float, duration: float, category: str = "cpu_op", thread: int = HOST, **args: object
) -> dict:
    where = {"ph": "X", "cat": category, "pid": 1, "tid": thread}
    return where | {"name": name, "ts": start, "dur": duration, "args": args}


def scope(index: int, label: str, start: float, duration: float) -> dict:
    return span(f"mfu#{index}:{label}", start, duration, "user_annotation")


def node(name: str, start: float, duration: float, number: int | None, thread: int = HOST) -> dict:
    args = {} if number is None else {"Sequence number": number}
    return span(f"{NODE}{name}", start, duration, thread=thread, **args)


def launch(correlation: int, start: float, thread: int = HOST, name: str = "cudaLaunchKernel") -> dict:
    return span(name, start, 1, "cuda_runtime", thread, correlation=correlation)


def kernel(correlation: int, start: float, duration: float, category: str = "kernel", name: str = "") -> dict:
    shown = name or f"kernel_{correlation}"
    return span(shown, start, duration, category, thread=7, correlation=correlation)


def joined(events: list[dict], tracker: Known, device: str, compilation: Compilation | None = None) -> Attribution:
    """The attribution of a trace by hand; the order of its events must not matter."""
    found = attribute(Trace(events[::-1], tracker, compilation or Compilation()), device)  # type: ignore[arg-type]
    assert found == attribute(Trace(events, tracker, compilation or Compilation()), device)  # type: ignore[arg-type]
    return found
