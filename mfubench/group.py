"""A child process that can be ended with all that it has started, such as compilers, and that ends with its parent."""

import multiprocessing
import os
import signal
import sys
import warnings
from contextlib import suppress
from threading import Thread
from typing import Any

LEFT_BEHIND = "ignore:resource_tracker:UserWarning"
END_LIMIT_S = 10.0  # a process whose kernel hangs ends when the driver has given up its context


def spawning() -> Any:
    """In the parent: the context of multiprocessing in which a child is a fresh process.

    Python clears away what a child that was ended has left, such as its locks; and says so to the user, if nobody tells
    it before the first child is there that this is as it should be.
    """
    if LEFT_BEHIND not in sys.warnoptions:
        sys.warnoptions.append(LEFT_BEHIND)
    return multiprocessing.get_context("spawn")


def lead_group() -> None:
    """In the child: lead a group of its own, and have no voice but stderr.

    Ctrl-C is heard by the parent, which ends this process; what a user's model prints is no part of any result.
    """
    os.setsid()
    Thread(target=_end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr
    warnings.simplefilter("ignore")


def _end_with_the_parent() -> None:
    """Also when it was killed, and while a kernel hangs here."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def end_group(process: Any) -> None:
    """In the parent: end the child with its group; one that the driver holds on to is not waited for any longer."""
    with suppress(ProcessLookupError, PermissionError):  # it has not come so far as to have a group, or is gone
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(END_LIMIT_S)


def how_it_ended(process: Any) -> str:
    """In words: the signal or the exit code of a child that has ended."""
    process.join(END_LIMIT_S)
    code = process.exitcode
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"code {code}"
