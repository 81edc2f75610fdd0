"""Runs a plan in a process of its own, which is renewed when a task breaks it, until the plan or the budget ends.

A kernel that writes where it should not ruins its process's CUDA context, and a compile that hangs never returns: both
must cost one task, not the campaign. So tasks run in a worker, one after the other, and the campaign waits beside it.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from mfubench.errors import ToolBroke
from mfubench.kernels.interpreter import interpreting_children

from .plan import Task
from .store import ABSENT, DONE, FAILED, Store

if TYPE_CHECKING:
    import torch

START_LIMIT_S = 300.0
READY = "ready"
LEAST_S = 5.0  # less is left of the budget: no task is begun
Progress = Callable[[str, float], None]
Loop = Callable[[Connection, str, Path], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many tasks were done now, were done before, failed, do not run here, and were not begun."""

    done: int
    before: int
    failed: int
    absent: int
    left: int


def run_campaign(
    tasks: Sequence[Task],
    store: Store,
    device: str,
    *,
    budget_s: float,
    task_limit_s: float,
    progress: Progress,
    loop: Loop | None = None,
) -> Outcome:
    """Run what is not done yet, each task for at most ``task_limit_s``, and keep each result as it comes.

    ``loop`` is what the worker does in place of running tasks.
    """
    waiting = [task for task in tasks if not store.is_done(task)]
    deadline = monotonic() + budget_s
    counts = {DONE: 0, FAILED: 0, ABSENT: 0}
    worker = Worker(device, store.folder, loop)
    try:
        for index, task in enumerate(waiting):
            left = deadline - monotonic()
            if left < LEAST_S:
                return _outcome(counts, len(tasks) - len(waiting), len(waiting) - index)
            progress(f"{task.stage}: {task.name}", index / len(waiting))
            status, reason, document = worker.run(task, min(left, task_limit_s))
            store.write(task, status, reason, document)
            counts[status] += 1
    finally:
        worker.stop()
    return _outcome(counts, len(tasks) - len(waiting), 0)


def _outcome(counts: dict[str, int], before: int, left: int) -> Outcome:
    return Outcome(counts[DONE], before, counts[FAILED], counts[ABSENT], left)


class Worker:
    """A process that runs tasks; started when it is first needed and after it broke."""

    def __init__(self, device: str, folder: Path, loop: Loop | None = None) -> None:
        self.device, self.folder = device, folder
        self._loop = loop or _work
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Connection | None = None

    def run(self, task: Task, limit_s: float) -> tuple[str, str | None, Any]:
        """Status, reason and document of one task."""
        pipe = self._started()
        try:
            pipe.send((task.stage, dict(task.arguments)))
            if not pipe.poll(limit_s):
                self.stop()
                return FAILED, f"gave up after {limit_s:.0f} s", None
            status, reason, document, usable = pipe.recv()
        except (EOFError, ConnectionError):
            code = self._exit_code()
            self.stop()
            return FAILED, f"its process ended with code {code}", None
        if not usable:
            self.stop()
        return status, reason, document

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _started(self) -> Connection:
        if self._process is not None and not self._process.is_alive():  # ended between two tasks: neither's failure
            self.stop()
        if self._pipe is None:
            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(target=self._loop, args=(theirs, self.device, self.folder))
            with interpreting_children() if self.device == "cpu" else nullcontext():
                self._process.start()
            theirs.close()
            self._wait_until_ready(self._pipe)
        return self._pipe

    def _wait_until_ready(self, pipe: Connection) -> None:
        """Importing takes seconds that are no task's."""
        try:
            if pipe.poll(START_LIMIT_S) and pipe.recv() == READY:
                return
        except (EOFError, ConnectionError):
            pass
        raise ToolBroke(f"the campaign's worker did not start (exit code {self._exit_code()}); see its messages above")

    def _exit_code(self) -> int | None:
        self._process.join(LEAST_S)
        code: int | None = self._process.exitcode
        return code


def _work(pipe: Connection, device: str, folder: Path) -> None:
    """The worker: a task in, its result out, until the pipe closes."""
    import signal
    import sys
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the campaign hears Ctrl-C and ends this process
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr
    import torch

    from .tasks import NotHere, run_task

    pipe.send(READY)
    while True:
        try:
            stage, arguments = pipe.recv()
        except EOFError:
            return
        result: tuple[str, str | None, Any]
        try:
            result = (DONE, None, run_task(stage, arguments, device, folder))
        except NotHere as why:
            result = (ABSENT, str(why), None)
        except torch.OutOfMemoryError as error:
            result = (FAILED, f"out of memory: {error}", None)
        except Exception as error:
            result = (FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:500], None)
        pipe.send((*result, _usable(torch.device(device))))


def _usable(device: "torch.device") -> bool:
    """Whether the next task finds a sound and empty device; what a kernel broke shows when it is waited for."""
    import torch

    from mfubench.exhausted import release
    from mfubench.measure.compiled import compiler_loaded

    if compiler_loaded():
        torch.compiler.reset()  # compiled code may hold tensors
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        release((), device)
    except RuntimeError:
        return False
    return True
