"""Workers that share tasks: each task once, in order; what ends one of them ends all."""

import time

import pytest

from mfubench.side_by_side import SharedProgress, share_out, workers
from mfubench.worker import Worker


def test_every_task_is_done_once_whatever_the_number_of_hands() -> None:
    done: list[int] = []
    with workers("cpu", 3) as hands:
        share_out(range(10), hands, lambda worker, task: done.append(task))
        share_out([10], hands, lambda worker, task: done.append(task))
        share_out([], hands, lambda worker, task: done.append(task))
    assert sorted(done) == list(range(11)) and done[-1] == 10 and not any(worker.killed for worker in hands)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["an error", "Ctrl-C"])
def test_what_ends_one_ends_all_and_no_more_is_begun(error: BaseException) -> None:
    begun: list[int] = []

    def do(worker: Worker, task: int) -> None:
        begun.append(task)
        if task == 1:
            raise error
        while not worker.killed:
            time.sleep(0.01)

    with workers("cpu", 2) as hands, pytest.raises(type(error)):
        share_out(range(10), hands, do)
    assert sorted(begun) == [0, 1] and all(worker.killed for worker in hands)


def test_progress_counts_what_has_begun() -> None:
    told: list[tuple[str, float]] = []
    shared = SharedProgress(lambda stage, done: told.append((stage, done)), 4)
    shared.begins("a")
    shared.begins("b")
    shared.goes_on("a goes on")
    assert told == [("a", 0.0), ("b", 0.25), ("a goes on", 0.25)]
