"""Children fork where torch is loaded and nothing else happened, or are made anew; both have their parent's world."""

import os
import signal
import sys
from multiprocessing import Pipe
from subprocess import PIPE, Popen
from time import sleep
from typing import Any

import pytest

from mfubench.group import LOADED, end_group, start


def tell(pipe: Any, names: tuple[str, ...]) -> None:
    """What a child finds."""
    loaded = [name for name in names if name in sys.modules]
    cuda = "torch" in loaded and sys.modules["torch"].cuda.is_initialized()
    heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    pipe.send({"loaded": loaded, "cuda": cuda, "heard": heard, "blocked": blocked, "environment": dict(os.environ)})


def found(**options: Any) -> dict[str, Any]:
    ours, theirs = Pipe()
    process = start(tell, theirs, (*LOADED, "triton", "torch._dynamo"), **options)
    try:
        assert ours.poll(120)
        told: dict[str, Any] = ours.recv()
    finally:
        end_group(process)
    return told


@pytest.mark.parametrize("anew", [False, True])
def test_what_a_child_finds(anew: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "then"):  # the server was started with the first at the latest
        monkeypatch.setenv("CHANGED", value)
        child = found(anew=anew)
        assert child["environment"] == dict(os.environ)
    assert child["loaded"] == ([] if anew else list(LOADED))  # not triton, which looks at its environment
    assert not child["cuda"] and not child["heard"] and not child["blocked"]


INTERRUPTED = """
import time
from mfubench.group import forking
forking()
print("loading", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    pass
"""


def test_an_interrupt_while_the_server_loads_leaves_no_traceback() -> None:
    """The terminal sends it to all of the group, and the server, which ends with its parent, would be heard of last."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", INTERRUPTED]
    with Popen(command, stdout=PIPE, stderr=PIPE, text=True, env=environment, start_new_session=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "loading\n"
        sleep(0.5)  # in which it comes to load
        os.killpg(parent.pid, signal.SIGINT)
        _, told = parent.communicate(timeout=120)
    assert (parent.returncode, told) == (0, "")
