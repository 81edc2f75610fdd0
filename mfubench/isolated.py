"""A task in a fresh process, which can be given up: a compile that hangs or a kernel that crashes costs one trial."""

from collections.abc import Callable, Mapping
from math import inf
from multiprocessing import Pipe
from time import monotonic
from types import MappingProxyType
from typing import Any, TypeVar

from mfu_kernels.errors import InvalidArgument
from mfubench.errors import MfubenchError
from mfubench.group import end_group, how_it_ended, start

R = TypeVar("R")
A = TypeVar("A")
Tell = Callable[[str], None]
Phases = Mapping[str, float]


class GaveUp(Exception):
    """The task did not come to its end; the message says why, in words for a log."""


def run_isolated(
    task: Callable[[A, Tell], R],
    argument: A,
    *,
    limit_s: float,
    phase_limits: Phases = MappingProxyType({}),
    tell: Tell = lambda phase: None,
    anew: bool = False,
) -> R:
    """``task(argument, tell)`` in a fresh process, for at most ``limit_s`` seconds and what ``phase_limits`` allows.

    A phase is what the task tells; its limit counts from the first time that it is told, in seconds spent in it. A task
    whose times are to be confirmed by another process gets one that is made ``anew`` (`group`).

    Raises:
        GaveUp: it took too long, its process died, or it raised what nobody expected.
        ToolBroke: no process could be started.
        MfubenchError, InvalidArgument: it raised that.
    """
    ours, theirs = Pipe()
    process = start(_work, theirs, task, argument, anew=anew)
    theirs.close()
    try:
        result: R = _Watch(ours, limit_s, phase_limits, tell).wait(process)
        return result
    finally:
        end_group(process)
        ours.close()


class _Watch:
    """Waits for a process's result and counts the seconds of each phase."""

    def __init__(self, pipe: Any, limit_s: float, phase_limits: Phases, tell: Tell) -> None:
        self.pipe, self.limits, self.tell = pipe, dict(phase_limits), tell
        self.limit_s, self.deadline = limit_s, monotonic() + limit_s
        self.phase, self.since = "starting", monotonic()

    def wait(self, process: Any) -> Any:
        """The result."""
        kind: str
        value: Any
        while True:
            now = monotonic()
            left = min(self.deadline - now, self.limits.get(self.phase, self.limit_s) - (now - self.since))
            try:
                there = self.pipe.poll(None if left == inf else max(0.0, left))
                kind, value = self.pipe.recv() if there else ("late", None)
            except (EOFError, ConnectionError):
                raise GaveUp(f"its process ended with {how_it_ended(process)} while {self.phase}") from None
            if kind == "late":
                raise GaveUp(self._late())
            if kind == "done":
                return value
            if kind == "raised":
                raise value
            if kind == "failed":
                raise GaveUp(f"{value} while {self.phase}")
            self._enter(value)

    def _enter(self, phase: str) -> None:
        if self.phase in self.limits:
            self.limits[self.phase] -= monotonic() - self.since
        self.phase, self.since = phase, monotonic()
        self.tell(phase)

    def _late(self) -> str:
        if monotonic() < self.deadline:
            return f"{self.phase} took longer than what it was given"
        return f"given up after {self.limit_s:.0f} s, while {self.phase}"


def _work(pipe: Any, task: Callable[[Any, Tell], Any], argument: Any) -> None:
    """The other side."""
    try:
        pipe.send(("done", task(argument, lambda phase: pipe.send(("phase", phase)))))
    except (MfubenchError, InvalidArgument) as error:
        pipe.send(("raised", error))
    except BaseException as error:
        pipe.send(("failed", " ".join(f"{type(error).__name__}: {error}".split())[:300]))
