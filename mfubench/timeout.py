"""An end for a workload that hangs."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import BadInput

GRACE_S = 5.0


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise BadInput in the main thread when ``seconds`` are over; None sets no limit.

    Python code and waits are interrupted at once. What hangs in a library without returning to Python cannot be; then
    the process ends after a grace period, with the same line and exit code, and nothing half written.
    """
    if seconds is None:
        yield
        return
    message = f"--timeout {seconds:g}: the workload was still running; raise the limit, or take fewer steps"

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise BadInput(message)

    def end() -> None:
        print(f"mfubench: error: {message}", file=sys.stderr, flush=True)
        os._exit(BadInput.exit_code)

    before = signal.signal(signal.SIGALRM, interrupt)
    watchdog = threading.Timer(seconds + GRACE_S, end)
    watchdog.daemon = True
    watchdog.start()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        watchdog.cancel()
