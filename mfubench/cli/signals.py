"""What ends a command from outside: each signal as an interrupt, which cleans up; and one that was swallowed, again."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
AGAIN_S = 1.0
_HEARD: list[int] = []  # what has come since the command began


@contextmanager
def ended_as_interrupted() -> Iterator[list[int]]:
    """Have what a CI, a scheduler, a closed terminal or Ctrl-C sends raise KeyboardInterrupt: there are folders and
    processes to take away. Gives the signals that have come.

    One that is sent to a whole group comes twice, while cleaning up is begun: the second is not heard in a second.
    """
    del _HEARD[:]
    last = -AGAIN_S

    def interrupt(number: int, _frame: object) -> None:
        nonlocal last
        before, last = last, monotonic()
        _HEARD.append(number)
        if number == signal.SIGINT or last - before >= AGAIN_S:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield _HEARD
        return
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup has one not heard
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield _HEARD
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def go_on_unless_interrupted() -> None:
    """Raise KeyboardInterrupt if one was raised and somebody caught it: libraries do so while they are imported."""
    if _HEARD and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def how_interrupted(number: int) -> str:
    """What is said in the end of a command that a signal has ended."""
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    return f"{how}; nothing was left half written"
