"""An end for a workload that hangs."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import TimeUp

GRACE_S = 5.0


class _Over(BaseException):
    """Not an Exception, which compilers and models catch to go on with something else."""


@contextmanager
def time_limit(seconds: float | None, last_words: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Raise TimeUp in the main thread when ``seconds`` are over; None sets no limit.

    Python code and waits are interrupted at once. What hangs in a library without returning to Python cannot be; then
    the process ends after a grace period and ``last_words``, with the same line and exit code, and nothing half
    written. A library that also keeps Python's lock outlasts both.
    """
    if seconds is None:
        yield
        return
    message = f"--timeout {seconds:g}: the workload was still running; raise the limit, or take fewer steps"

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise _Over

    def end() -> None:
        try:
            last_words()
        finally:
            print(f"mfubench: error: {message}", file=sys.stderr, flush=True)
            os._exit(TimeUp.exit_code)

    before = signal.signal(signal.SIGALRM, interrupt)
    watchdog = threading.Timer(seconds + GRACE_S, end)
    watchdog.daemon = True
    watchdog.start()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Over:
        raise TimeUp(message) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        watchdog.cancel()
