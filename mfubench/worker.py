"""A process of its own for what may crash, hang or take too long: that then costs itself, and not who asked for it.

A kernel that writes where it should not ruins its process's CUDA context; one that waits at a barrier which nobody
reaches, and a compile that hangs, never return. So such work runs in a worker, which is ended and started anew. Work
that has parts names each as it begins: one that breaks the process, or outlasts its limit, is left out with the reason,
and the work is done again without it.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import inf
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any

from mfubench.errors import MfubenchError, ToolBroke
from mfubench.group import end_group, how_it_ended, start
from mfubench.kernels.interpreter import interpreting_children

if TYPE_CHECKING:
    import torch

DONE, PART, FAILED, ABSENT = "done", "in part", "failed", "not run"
START_LIMIT_S = 300.0
LEAST_S = 5.0  # with less left, nothing is begun
_READY, _BEGINS, _SO_FAR, _BROKE, _ANSWER = "ready", "begins", "so far", "broke", "answer"
_STARTING = Lock()  # the environment that a process starts with belongs to all threads


class NotHere(Exception):
    """Why something cannot be run on this device; it is no failure."""


class PartBroke(MfubenchError):
    """A part ruined this process's CUDA context: nothing runs here any more, but elsewhere without it."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} broke the device's context: {reason}")
        self.part, self.reason = part, reason


@dataclass(frozen=True, slots=True)
class Watch:
    """Who waits for work: ``part(name)`` tells it, as a context, what runs inside; ``so_far`` gives it what stands."""

    part: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext()
    so_far: Callable[[Any], None] = lambda document: None


UNWATCHED = Watch()
Work = Callable[..., Any]
"""A module's function: it takes the watch, its arguments by name, and ``without``, the parts to leave out, and why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of work: its document if it is done; so far, if it is done in part; else None, and the reason."""

    status: str
    reason: str | None = None
    document: Any = None


@dataclass(frozen=True, slots=True)
class _Broke:
    """A part did, and why."""

    part: str
    reason: str


class _CutOff:
    """The limit of the whole work was over."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs: in ``folder``; imports look into ``paths`` before all others, and not into ``hidden``."""

    folder: Path
    paths: Sequence[Path]
    hidden: Sequence[Path] = ()


class Worker:
    """A process that works; started when it is first needed and after it broke, ended with ``close``.

    It runs in the working directory, or in another ``place``. One that is ``resident`` keeps on the device, from one
    work to the next, what its functions keep; as its times are held against another's, it is made anew (`group`).
    """

    def __init__(self, device: str, *, place: Place | None = None, resident: bool = False) -> None:
        self.device, self.place, self.resident = device, place, resident
        self._process: Any = None
        self._pipe: Connection | None = None
        self._killed = False

    def run(
        self,
        work: Work,
        arguments: Mapping[str, Any],
        *,
        limit_s: float = inf,
        part_limit_s: float = inf,
        keep: Callable[[Any], None] = lambda document: None,
        begins: Callable[[str], None] = lambda part: None,
    ) -> Answer:
        """Have ``work`` done in ``limit_s`` seconds, each of its parts in ``part_limit_s``, without those that cannot.

        ``keep`` is given what stands so far, as it comes; the last of it is the answer to work that is cut off.
        ``begins`` is given each part's name.
        """
        self._started()  # which takes seconds that are no work's
        ends = monotonic() + limit_s
        without: dict[str, str] = {}
        stands: list[Any] = []

        def stand(document: Any) -> None:
            stands[:] = [document]
            keep(document)

        while True:
            match self._try(work, {**arguments, "without": dict(without)}, ends, part_limit_s, stand, begins):
                case Answer() as found:
                    break
                case _CutOff():
                    found = Answer(FAILED, f"was cut off at its limit of {limit_s:.0f} s")
                    break
                case _Broke(part, reason):
                    if part in without or ends - monotonic() < LEAST_S:
                        found = Answer(FAILED, f"{part}: {reason}")
                        break
                    without[part] = reason
        return Answer(PART, found.reason, stands[0]) if stands and found.status == FAILED else found

    def _try(
        self,
        work: Work,
        arguments: Mapping[str, Any],
        ends: float,
        part_limit_s: float,
        stand: Callable[[Any], None],
        begins: Callable[[str], None],
    ) -> Answer | _CutOff | _Broke:
        """One attempt."""
        pipe, part, part_ends = self._started(), None, inf
        try:
            pipe.send((work, dict(arguments)))
            while pipe.poll(_until(min(ends, part_ends))):
                kind, *told = pipe.recv()
                if kind == _BEGINS:
                    (part,) = told
                    part_ends = inf if part is None else monotonic() + part_limit_s
                    if part is not None:
                        begins(part)
                elif kind == _SO_FAR:
                    stand(*told)
                elif kind == _BROKE:
                    self.close()
                    return _Broke(*told)
                else:
                    answer, usable = told
                    if not usable:
                        self.close()
                    return Answer(*answer)
        except (EOFError, ConnectionError):
            reason = f"its process ended with {how_it_ended(self._process)}"
            self.close()
            return Answer(FAILED, reason) if part is None or self._killed else _Broke(part, reason)
        self.close()
        return _CutOff() if part is None or part_ends > ends else _Broke(part, f"took over {part_limit_s:.0f} s")

    @property
    def killed(self) -> bool:
        """Whether it was ended for good."""
        return self._killed

    def kill(self) -> None:
        """End the process for good, whatever it does; who waits for its answer is told that it ended."""
        self._killed = True
        process = self._process
        if process is not None:
            end_group(process)

    def close(self) -> None:
        """End the process and forget it; one that the driver holds on to is not waited for any longer."""
        if self._process is not None:
            end_group(self._process)
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _started(self) -> Connection:
        if self._process is not None and not self._process.is_alive():  # it ended between two works
            self.close()
        if self._pipe is None:
            self._pipe, theirs = Pipe()
            with _STARTING, interpreting_children() if self.device == "cpu" else nullcontext():
                process = start(_serve, theirs, self.device, self.place, self.resident, anew=self.resident)
            self._process = process  # not before, for another thread to kill
            theirs.close()
            if self._killed:  # by another thread, before there was anything to kill
                process.kill()
            self._wait_until_ready(self._pipe)
        return self._pipe

    def _wait_until_ready(self, pipe: Connection) -> None:
        try:
            if pipe.poll(START_LIMIT_S) and pipe.recv() == (_READY,):
                return
        except (EOFError, ConnectionError):
            pass
        raise ToolBroke(f"a worker did not start ({how_it_ended(self._process)}); see its messages above")


def _until(ends: float) -> float | None:
    return None if ends == inf else max(0.0, ends - monotonic())


def _serve(pipe: Connection, device: str, place: Place | None, resident: bool) -> None:
    """The worker: work in, its answer out, until the pipe closes."""
    if place is not None:  # before anything is imported that it may have another version of
        _move(place)
    import torch

    pipe.send((_READY,))
    watch = Watch(lambda name: _told(pipe, name), lambda document: pipe.send((_SO_FAR, document)))
    while True:
        try:
            work, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer: tuple[str, str | None, Any] = (DONE, None, work(watch, **arguments))
        except PartBroke as broke:
            pipe.send((_BROKE, broke.part, broke.reason))
            continue
        except NotHere as why:
            answer = (ABSENT, str(why), None)
        except torch.OutOfMemoryError as error:
            answer = (FAILED, f"out of memory: {error}", None)
        except Exception as error:
            answer = (FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:500], None)
        pipe.send((_ANSWER, answer, _usable(torch.device(device), resident)))


def _move(place: Place) -> None:
    """Into the place, and out of the folder that the parent works in, which is hidden too."""
    left = Path.cwd()
    hidden = {path.resolve() for path in (left, *place.hidden)}
    os.chdir(place.folder)
    sys.path[:] = [*map(str, place.paths), *(path for path in sys.path if (left / path).resolve() not in hidden)]


@contextmanager
def _told(pipe: Connection, part: str) -> Iterator[None]:
    pipe.send((_BEGINS, part))
    try:
        yield
    finally:
        pipe.send((_BEGINS, None))


def _usable(device: "torch.device", resident: bool = False) -> bool:
    """Whether the next work finds a sound device, and an empty one unless it is to find what this one has kept.

    What a kernel broke shows when it is waited for.
    """
    import torch

    from mfubench.exhausted import release
    from mfubench.measure.compiled import compiler_loaded
    from mfubench.measure.timing import wait_for

    if compiler_loaded() and not resident:
        torch.compiler.reset()  # compiled code may hold tensors
    try:
        wait_for(device)
        if not resident:
            release((), device)
    except RuntimeError:
        return False
    return True
