"""A model that ends the process: it is told how and where, what was measured stays, and signals arrive as without."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mfubench.cli.guard import COMMANDS, waited_for
from mfubench.measure.environment import injected
from mfubench.run import read_run

from .process import MODEL, cli

ENDS = """
def crash():
    ctypes.string_at(0)


def in_the_trace(end):
    return made(end, at=9)  # after the first step, four of the timing, two of the count, and the trace's own first


def crashes():
    return in_the_trace(crash)


def leaves():
    return made(lambda: os._exit(0))


def is_killed():
    return in_the_trace(lambda: os.kill(os.getpid(), 9))


def crashes_at_import():
    crash()


def crashes_at_the_end():
    atexit.register(crash)
    return made(lambda: None)


def is_interrupted():
    import signal
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as before Python has set its own
    return in_the_trace(lambda: os.kill(os.getpid(), signal.SIGINT))


def waits():
    import time
    return made(lambda: (print("it is", os.getpid(), file=sys.stderr, flush=True), time.sleep(600)))
"""
LINE = next(at for at, line in enumerate((MODEL + ENDS).splitlines(), 1) if "string_at" in line)
# No training: importing optimizers takes seconds.
STEPS = ("--steps", "1", "--mode", "infer", "--device", "cpu", "--json", "--quiet")
CASES = {
    "crashes": f"its process ended with SIGSEGV (ends.py:{LINE}) while tracing; what was measured until then is in ",
    "is_killed": "its process ended with SIGKILL (the system ends so what takes too much memory) while tracing; what ",
    "leaves": "its process was ended by the model or a library, as with os._exit, with exit code 0 while building ",
    "crashes_at_import": f"its process ended with SIGSEGV (ends.py:{LINE}) while building the model and its batches",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "ends.py").write_text(MODEL + ENDS)
    (tmp_path / "tmp").mkdir()
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_how_a_process_ended_is_told_and_what_was_measured_stays(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    found = cli(place, "profile", f"ends:{case}", *STEPS, "--trace", "--out", "out")
    (line,) = found.stderr.splitlines()
    assert (found.returncode, found.stdout) == (5, "")
    assert line.startswith(f"mfubench: error: profile ends:{case}: {CASES[case]}")
    assert not list((place / "tmp").glob("mfubench-*"))
    if "what was measured" not in line:
        assert not (place / "out").exists()
        return
    run = read_run(place / "out")
    assert len(run.step["timings_ms"]) == 1 and run.flops["model"] is not None
    assert any("the trace" in words for words in map(str, run.not_measured))
    assert {path.name for path in (place / "out").iterdir()} >= {"report.md", "report.html"}


def test_pythons_stack_shows_with_debug(place: Path) -> None:
    found = cli(place, "profile", "ends:crashes_at_import", *STEPS, "--debug")
    assert found.returncode == 5 and "Segmentation fault" in found.stderr and "in crash" in found.stderr


def test_an_end_after_the_result_is_told_as_well(place: Path) -> None:
    found = cli(place, "profile", "ends:crashes_at_the_end", *STEPS)
    (line,) = found.stderr.splitlines()
    assert found.returncode == 5 and found.stdout.endswith("}\n")
    assert f"its process ended with SIGSEGV (ends.py:{LINE}) after its result was told" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_who_waits_ends_who_works(number: signal.Signals, place: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mfubench", "profile", "ends:waits", *STEPS],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )
    assert process.stderr is not None
    working = int(process.stderr.readline().rpartition(" ")[2])
    assert working != process.pid
    process.send_signal(number)
    _, err = process.communicate(timeout=60)  # which ends when nobody has stderr open any more
    told = {signal.SIGTERM: (143, "ended by SIGTERM"), signal.SIGINT: (130, "interrupted"), signal.SIGKILL: (-9, "")}
    code, words = told[number]
    assert process.returncode == code and words in err and len(err.splitlines()) == bool(words)


def test_an_interrupt_that_the_worker_could_not_hear_is_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    found = cli(place, "profile", "ends:is_interrupted", *STEPS, "--out", "out")
    (line,) = found.stderr.splitlines()
    assert (found.returncode, found.stdout) == (130, "") and (place / "out" / "run.json").exists()
    assert line.startswith("mfubench: interrupted; nothing was left half written; what was measured until then is in ")
    assert not list((place / "tmp").glob("mfubench-*"))


def test_nobody_waits_where_that_is_not_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside threads; a command that runs no model needs nobody; a tool may not follow a fork."""
    assert waited_for([]) is None and waited_for(["models"]) is None
    with ThreadPoolExecutor(1) as another:
        another.submit(int).result()
        assert waited_for([COMMANDS[0]]) is None
    assert not injected()
    monkeypatch.setenv("CUDA_INJECTION64_PATH", "/opt/a_tool.so")
    assert injected()
