"""A process that waits beside the one that works, and says how that ended where it cannot say so itself.

A user's model may leave with ``os._exit`` or crash in a library, and the system ends what takes too much memory: none
of that process's code runs after that. So the command line forks as it starts, while nothing has threads yet. The child
works as if it were alone; the parent passes on signals and its exit code, and tells of an end that the child did not.
"""

import ctypes
import faulthandler
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .options import DEBUG_FLAG
from .profile import put_run
from .signals import how_interrupted
from .watched import WAITED_FOR, Shared, text_of

BROKE = 5
COMMANDS = ("profile", "plan", "ablate", "scale", "kernels")  # that run models here, not in workers
PASSED_ON = {signal.SIGINT, signal.SIGTERM} | ({signal.SIGHUP} if hasattr(signal, "SIGHUP") else set())
THREADS = Path("/proc/self/task")
PR_SET_PDEATHSIG = 1  # of Linux's prctl
FRAME = re.compile(r'File "(.+)", line (\d+) in ')


def waited_for(given: Sequence[str]) -> int | None:
    """None in the process that is to run the command; else, once it has ended, the exit code to leave with."""
    if not given or given[0] not in COMMANDS or not _can_fork():
        return None
    parent, before = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    try:
        shared = Shared(*map(os.memfd_create, ("told", "stage", "stack")))
        child = os.fork()
    except OSError:  # what the system does not give here; the work needs none of it
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    if child:
        ended = os.waitstatus_to_exitcode(_status_of(child))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if -ended in PASSED_ON:  # as Python ends itself where an interrupt came while it ran a library's code
            return _tell_interrupted(shared, -ended)
        return ended if ended >= 0 and shared.facts().get("over") else _tell_end(given, shared, ended)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(BROKE)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    faulthandler.enable(shared.stack)
    WAITED_FOR.append(shared)
    return None


def _can_fork() -> bool:
    """On Linux, before any library has started threads, and where no tool looks on that does not follow a fork."""
    from mfubench.measure.environment import injected

    return sys.platform == "linux" and THREADS.is_dir() and len(list(THREADS.iterdir())) == 1 and not injected()


def _status_of(child: int) -> int:
    """How it ended. A signal that somebody sent to this process alone is the child's; a terminal sends it to both."""
    while True:
        heard = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if heard.si_signo != signal.SIGCHLD:
            if heard.si_code <= 0:  # from a process, not from the system
                os.kill(child, heard.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status


def _tell_end(given: Sequence[str], shared: Shared, ended: int) -> int:
    """Say how the child ended, keep what it has measured, and give the exit code."""
    facts, stack = shared.facts(), text_of(shared.stack)
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")  # a progress bar hides the cursor
    if DEBUG_FLAG in given:
        sys.stderr.write(stack)
    shown = f"; {DEBUG_FLAG} shows Python's stack" if stack and DEBUG_FLAG not in given else ""
    where = "after its result was told" if facts.get("over") else f"while {text_of(shared.stage).strip() or 'starting'}"
    what = " ".join(filter(None, (given[0], facts.get("model"))))
    message = f"{what}: its process {_how(ended)}{_place(stack)} {where}{_kept(facts)}{shown}"
    print(f"mfubench: error: {message}", file=sys.stderr)
    if "scratch" in facts:
        shutil.rmtree(facts["scratch"], ignore_errors=True)
    return BROKE


def _tell_interrupted(shared: Shared, number: int) -> int:
    """The same where a signal that cleans up came before the child could hear it, or while it left."""
    facts = shared.facts()
    if not facts.get("over"):
        print(f"mfubench: {how_interrupted(number)}{_kept(facts)}", file=sys.stderr)
    if "scratch" in facts:
        shutil.rmtree(facts["scratch"], ignore_errors=True)
    return 128 + number


def _how(ended: int) -> str:
    if ended >= 0:
        return f"was ended by the model or a library, as with os._exit, with exit code {ended}"
    with suppress(ValueError):
        name = signal.Signals(-ended).name
        return f"ended with {name}{' (the system ends so what takes too much memory)' if name == 'SIGKILL' else ''}"
    return f"ended with signal {-ended}"


def _place(stack: str) -> str:
    """The line of the model's own code that ran when the process crashed, if one did."""
    from mfubench.user_code import own_line

    crashed = stack.rpartition("Current thread")[2].partition("\n\n")[0]
    found = own_line([(Path(file), int(line)) for file, line in FRAME.findall(crashed)])
    return f" ({found})" if found else ""


def _kept(facts: dict[str, Any]) -> str:
    """Write what was measured before, and say where it is."""
    if facts.get("over") or "kept" not in facts:
        return ""
    from mfubench.errors import MfubenchError
    from mfubench.run import read_run

    kept, out = Path(facts["kept"]), Path(facts["out"])
    try:
        put_run(read_run(kept), out, kept.parent)
    except (OSError, MfubenchError) as error:
        return f"; what was measured until then could not be kept: {error}"
    return f"; what was measured until then is in {out}"
