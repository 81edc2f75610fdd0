"""Runs a plan in workers, one task after the other, until the plan or the budget ends.

What need not have the device to itself runs in several workers at once.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import groupby
from queue import Empty, Queue
from threading import Event, Lock
from time import monotonic
from typing import Any

from mfubench.worker import ABSENT, DONE, FAILED, LEAST_S, PART, Work, Worker

from .plan import TOGETHER, Task
from .store import Store
from .tasks import run_task

TOGETHER_SHARE = 0.4  # of the budget: the most that compiling and checking may take before something is timed
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds in all, for a task, and for a peer or a config; by stage the most that a task may take of the budget."""

    budget_s: float
    task_s: float
    peer_s: float
    shares: Mapping[str, float] = field(default_factory=dict)

    def of(self, task: Task) -> float:
        """Those of one task."""
        return min(self.task_s, self.shares.get(task.stage, 1.0) * self.budget_s)

    def of_part(self, task: Task) -> float:
        """Those of a part of it: a case of the contract compiles several kernels."""
        return self.of(task) / 2 if task.stage == "contract" else self.peer_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many tasks were done now, were done before, failed (in part, too), do not run here, and were not begun."""

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
    limits: Limits,
    progress: Progress,
    side_by_side: int = 1,
    work: Work = run_task,
) -> Outcome:
    """Run what is not done yet, each task within ``limits``, and keep each result as it comes.

    ``side_by_side``: so many workers share the stages that need not have the device to themselves. ``work`` is what a
    worker does for a task.
    """
    waiting = [task for task in tasks if not store.is_done(task)]
    statuses: list[str] = []  # threads may append to it, but not count
    told = _Told(progress, len(waiting))
    begin, interrupted = monotonic(), Event()

    def take(worker: Worker, queue: "Queue[Task]", ends: float) -> None:
        """Run the tasks of ``queue`` until it is empty or the time is over."""
        while (left := ends - monotonic()) >= LEAST_S:
            try:
                task = queue.get_nowait()
            except Empty:
                return
            told.begins(task)

            def keep(document: Any, task: Task = task) -> None:
                store.write(task, PART, "cut off", document)

            arguments: dict[str, Any] = {"stage": task.stage, "arguments": dict(task.arguments)}
            arguments |= {"device": device, "folder": store.folder}
            limit_s = min(left, limits.of(task))
            answer = worker.run(work, arguments, limit_s=limit_s, part_limit_s=limits.of_part(task), keep=keep)
            if interrupted.is_set():
                return
            store.write(task, answer.status, answer.reason, answer.document)
            statuses.append(answer.status)

    with ExitStack() as stack:
        workers = [stack.enter_context(closing(Worker(device))) for _ in range(side_by_side)]
        for together, group in groupby(waiting, key=lambda task: task.stage in TOGETHER):
            queue: Queue[Task] = Queue()
            for task in group:
                queue.put(task)
            ends = begin + limits.budget_s
            if together:
                ends = min(ends, monotonic() + TOGETHER_SHARE * limits.budget_s)
            hands = workers[: min(queue.qsize(), side_by_side)] if together else workers[:1]
            with ThreadPoolExecutor(len(hands)) as pool:
                running = [pool.submit(take, worker, queue, ends) for worker in hands]
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
    done, absent = statuses.count(DONE), statuses.count(ABSENT)
    failed = statuses.count(FAILED) + statuses.count(PART)
    return Outcome(done, len(tasks) - len(waiting), failed, absent, len(waiting) - len(statuses))


class _Told:
    """Tells the progress of tasks that begin in several threads."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._begun, self._lock = progress, total, 0, Lock()

    def begins(self, task: Task) -> None:
        with self._lock:
            self._progress(f"{task.stage}: {task.name}", self._begun / self._total)
            self._begun += 1
