"""Runs a plan in processes of its own, which are renewed when a task breaks them, until the plan or the budget ends.

A kernel that writes where it should not ruins its process's CUDA context, and a compile that hangs never returns: both
must cost one task, not the campaign. So tasks run in a worker, one after the other, and the campaign waits beside it;
what need not have the device to itself runs in several workers at once.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Lock
from time import monotonic
from typing import TYPE_CHECKING, Any

from mfubench.errors import ToolBroke
from mfubench.kernels.interpreter import interpreting_children

from .plan import TOGETHER, Task
from .store import ABSENT, DONE, FAILED, Store

if TYPE_CHECKING:
    import torch

START_LIMIT_S = 300.0
READY = "ready"
AGAIN = "again"  # a worker's answer: run it once more, with the arguments that come along
_STARTING = Lock()  # the environment that a process starts with belongs to all threads
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
    side_by_side: int = 1,
    loop: Loop | None = None,
) -> Outcome:
    """Run what is not done yet, each task for at most ``task_limit_s``, and keep each result as it comes.

    ``side_by_side``: so many workers share the stages that need not have the device to themselves. ``loop`` is what a
    worker does in place of running tasks.
    """
    waiting = [task for task in tasks if not store.is_done(task)]
    statuses: list[str] = []  # threads may append to it, but not count
    told = _Told(progress, len(waiting))
    deadline, interrupted = monotonic() + budget_s, Event()

    def take(worker: Worker, queue: "Queue[Task]") -> None:
        """Run the tasks of ``queue`` until it is empty or the budget is spent."""
        while deadline - monotonic() >= LEAST_S:
            try:
                task = queue.get_nowait()
            except Empty:
                return
            told.begins(task)
            status, reason, document = _run_until_it_stands(worker, task, deadline, task_limit_s)
            if interrupted.is_set():
                return
            store.write(task, status, reason, document)
            statuses.append(status)

    with ExitStack() as stack:
        workers = [stack.enter_context(closing(Worker(device, store.folder, loop))) for _ in range(side_by_side)]
        for together, group in groupby(waiting, key=lambda task: task.stage in TOGETHER):
            queue: Queue[Task] = Queue()
            for task in group:
                queue.put(task)
            hands = workers[: min(queue.qsize(), side_by_side)] if together else workers[:1]
            with ThreadPoolExecutor(len(hands)) as pool:
                running = [pool.submit(take, worker, queue) for worker in hands]
                try:
                    for ended in as_completed(running):
                        ended.result()
                except BaseException:  # Ctrl-C too: else the pool would wait for its tasks
                    interrupted.set()
                    for worker in hands:
                        worker.kill()
                    raise
            for worker in hands[1:]:
                worker.close()  # what is timed has the device to itself
    done, failed, absent = (statuses.count(status) for status in (DONE, FAILED, ABSENT))
    return Outcome(done, len(tasks) - len(waiting), failed, absent, len(waiting) - len(statuses))


def _run_until_it_stands(
    worker: "Worker", task: Task, deadline: float, task_limit_s: float
) -> tuple[str, str | None, Any]:
    """Run ``task``, and again with the arguments that it asks for, each time leaving out a part that broke it."""
    while (left := deadline - monotonic()) >= LEAST_S:
        status, reason, document = worker.run(task, min(left, task_limit_s))
        if status != AGAIN:
            return status, reason, document
        task = replace(task, arguments=document)
    return FAILED, "the budget ended before it was run once more", None


class _Told:
    """Tells the progress of tasks that begin in several threads."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._begun, self._lock = progress, total, 0, Lock()

    def begins(self, task: Task) -> None:
        with self._lock:
            self._progress(f"{task.stage}: {task.name}", self._begun / self._total)
            self._begun += 1


class Worker:
    """A process that runs tasks; started when it is first needed and after it broke."""

    def __init__(self, device: str, folder: Path, loop: Loop | None = None) -> None:
        self.device, self.folder = device, folder
        self._loop = loop or _work
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Connection | None = None
        self._killed = False

    def run(self, task: Task, limit_s: float) -> tuple[str, str | None, Any]:
        """Status, reason and document of one task."""
        pipe = self._started()
        try:
            pipe.send((task.stage, dict(task.arguments)))
            if not pipe.poll(limit_s):
                self.close()
                return FAILED, f"gave up after {limit_s:.0f} s", None
            status, reason, document, usable = pipe.recv()
        except (EOFError, ConnectionError):
            code = self._exit_code()
            self.close()
            return FAILED, f"its process ended with code {code}", None
        if not usable:
            self.close()
        return status, reason, document

    def kill(self) -> None:
        """End the process for good, whatever it does; who waits for its answer is told that it ended."""
        self._killed = True
        if self._process is not None and self._process.is_alive():
            self._process.kill()

    def close(self) -> None:
        """End the process and forget it."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _started(self) -> Connection:
        if not (self._killed or self._process is None or self._process.is_alive()):  # ended between two tasks
            self.close()
        if self._pipe is None:
            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(target=self._loop, args=(theirs, self.device, self.folder))
            with _STARTING, interpreting_children() if self.device == "cpu" else nullcontext():
                self._process.start()
            theirs.close()
            if self._killed:  # by another thread, before there was anything to kill
                self._process.kill()
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

    from .tasks import Again, NotHere, run_task

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
        except Again as again:
            result = (AGAIN, None, again.arguments)
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
    from mfubench.measure.timing import wait_for

    if compiler_loaded():
        torch.compiler.reset()  # compiled code may hold tensors
    try:
        wait_for(device)
        release((), device)
    except RuntimeError:
        return False
    return True
