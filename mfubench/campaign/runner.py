"""Runs a plan in workers, one task after the other, until the plan or the budget ends.

What need not have the device to itself runs in several workers at once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from time import monotonic
from typing import Any

from mfubench.progress import Progress
from mfubench.side_by_side import SharedProgress, share_out, workers
from mfubench.worker import ABSENT, DONE, FAILED, LEAST_S, PART, Work, Worker

from .plan import TOGETHER, Task
from .store import Store
from .tasks import run_task

TOGETHER_SHARE = 0.4  # of the budget: the most that compiling and checking may take before something is timed


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

    def told(self) -> str:
        """In words, without what there is none of."""
        counts = {
            "done": self.done,
            "done before": self.before,
            "failed or cut off": self.failed,
            "not for this device": self.absent,
            "not begun": self.left,
        }
        return f"tasks: {', '.join(f'{count} {how}' for how, count in counts.items() if count)}"


def run_campaign(
    tasks: Sequence[Task],
    store: Store,
    device: str,
    *,
    limits: Limits,
    progress: Progress,
    side_by_side: int = 1,
    together: Collection[str] = TOGETHER,
    work: Work = run_task,
) -> Outcome:
    """Run what is not done yet, each task within ``limits``, and keep each result as it comes.

    ``side_by_side``: so many workers share the stages of ``together``, which need not have the device to themselves.
    ``work`` is what a worker does for a task.
    """
    waiting = [task for task in tasks if not store.is_done(task)]
    statuses: list[str] = []  # threads may append to it, but not count
    told = SharedProgress(progress, len(waiting))
    begin = monotonic()

    def run_within(ends: float, worker: Worker, task: Task) -> None:
        """One task, unless the time is over."""
        left = ends - monotonic()
        if left < LEAST_S:
            return
        told.begins(f"{task.stage}: {task.name}")
        arguments: dict[str, Any] = {"stage": task.stage, "arguments": dict(task.arguments)}
        arguments |= {"device": device, "folder": store.folder}
        answer = worker.run(
            work,
            arguments,
            limit_s=min(left, limits.of(task)),
            part_limit_s=limits.of_part(task),
            keep=lambda document: store.write(task, PART, "cut off", document),
        )
        if worker.killed:  # what is interrupted is no failure
            return
        store.write(task, answer.status, answer.reason, answer.document)
        statuses.append(answer.status)

    with workers(device, side_by_side) as hands:
        for shared, group in groupby(waiting, key=lambda task: task.stage in together):
            ends = begin + limits.budget_s
            if shared and any(task.stage not in together for task in waiting):
                ends = min(ends, monotonic() + TOGETHER_SHARE * limits.budget_s)
            share_out(list(group), hands if shared else hands[:1], partial(run_within, ends))
            for worker in hands[1:]:
                worker.close()  # what is timed has the device to itself
    done, absent = statuses.count(DONE), statuses.count(ABSENT)
    failed = statuses.count(FAILED) + statuses.count(PART)
    return Outcome(done, len(tasks) - len(waiting), failed, absent, len(waiting) - len(statuses))
