"""A child process that can be ended with all that it has started, such as compilers, and that ends with its parent.

Most do not load torch again: that takes seconds, which a server of processes has spent once; it runs nothing, uses no
device, and forks when a child is asked for. Such children have the same layout of memory, which may be a lucky one.
Where times of several processes are to tell a change from luck, each is made anew.
"""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.forkserver import ensure_running
from threading import Thread
from typing import Any

from mfubench.errors import ToolBroke

# What takes longest to load, and most of what torch's compiler needs. None of it touches the driver; nor does it load
# triton, which then looks at its environment, for a child may have another.
LOADED = ("torch", "torch.fx.experimental.symbolic_shapes", "torch.distributed.fsdp", "pandas")
LEFT_BEHIND = "ignore:resource_tracker:UserWarning"
END_LIMIT_S = 10.0  # a process whose kernel hangs ends when the driver has given up its context


def forking() -> Any:
    """The context of multiprocessing in which children are forked from a process that has loaded ``LOADED``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    resource_tracker.ensure_running()  # before, as it lets signals be heard again
    with _unheard(signal.SIGINT):  # while the server loads, which would end in a traceback
        ensure_running()
    return context


def start(work: Callable[..., None], *arguments: Any, anew: bool = False) -> Any:
    """In the parent: a child that does ``work(*arguments)``, in the environment that this process has now.

    Python clears away what a child that was ended has left, such as its locks; and says so to the user, if nobody tells
    it before the first child is there that this is as it should be.

    Raises:
        ToolBroke: no child could be started.
    """
    if LEFT_BEHIND not in sys.warnoptions:
        sys.warnoptions.append(LEFT_BEHIND)
    context = multiprocessing.get_context("spawn") if anew else forking()
    process = context.Process(target=_lead, args=(dict(os.environ), work, arguments))
    try:
        process.start()
    except (EOFError, OSError) as error:
        raise ToolBroke(f"a process could not be started: {error or 'see the messages above'}") from error
    return process


@contextmanager
def _unheard(number: signal.Signals) -> Iterator[None]:
    """What is started inside does not hear a signal; this process does, when it comes out."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _lead(environment: Mapping[str, str], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In the child: lead a group of its own, and have no voice but stderr.

    Ctrl-C is heard by the parent, which ends this process; what a user's model prints is no part of any result.
    """
    os.environ.clear()
    os.environ.update(environment)
    os.setsid()
    Thread(target=_end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    sys.stdout = sys.stderr
    warnings.simplefilter("ignore")
    work(*arguments)


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
