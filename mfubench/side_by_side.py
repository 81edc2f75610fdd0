"""Several workers share a list of tasks: each takes the next one when it is free."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import TypeVar

from mfubench.progress import Progress
from mfubench.worker import Worker

MOST_WORKERS = 16  # each has a context on a GPU, of half a gigabyte
CONTRACT_PARTS = 8  # of an op's cases, which workers share
T = TypeVar("T")


def one_a_core() -> int:
    """How many workers keep this machine's cores busy."""
    return min(os.cpu_count() or 1, MOST_WORKERS)


@contextmanager
def workers(device: str, count: int) -> Iterator[list[Worker]]:
    """``count`` workers, which end with the context."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Worker(device))) for _ in range(count)]


def share_out(tasks: Sequence[T], hands: Sequence[Worker], do: Callable[[Worker, T], None]) -> None:
    """Call ``do(worker, task)`` for every task, in their order, in a thread for each of ``hands``.

    An error of one, or Ctrl-C, kills all workers and is raised; another's ``do`` sees it by ``worker.killed``.
    """
    stopped = Event()
    queue: SimpleQueue[T] = SimpleQueue()
    for task in tasks:
        queue.put(task)

    def take(worker: Worker) -> None:
        while not stopped.is_set():
            try:
                task = queue.get_nowait()
            except Empty:
                return
            do(worker, task)

    with ThreadPoolExecutor(len(hands)) as pool:
        try:
            running = [pool.submit(take, worker) for worker in hands]
            for ended in as_completed(running):
                ended.result()
        except BaseException:  # Ctrl-C too: else the pool would wait for its tasks
            stopped.set()
            for worker in hands:
                worker.kill()
            raise


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread of the host: there are as many workers as cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class SharedProgress:
    """Tells the progress of ``total`` tasks that several threads work at."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._begun, self._lock = progress, total, 0, Lock()

    def begins(self, stage: str) -> None:
        """A task begins, at ``stage``, and is counted."""
        with self._lock:
            self._begun += 1
        self.goes_on(stage)

    def goes_on(self, stage: str) -> None:
        """A task that has begun is at ``stage``."""
        with self._lock:
            self._progress(stage, (self._begun - 1) / self._total)
