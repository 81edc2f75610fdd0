"""A task in a process of its own: its result, its phases, and every way in which it does not come to its end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest

from mfubench.errors import BadInput
from mfubench.isolated import GaveUp, run_isolated

LIMIT_S = 60.0
Tell = Callable[[str], None]


def doubled(argument: int, tell: Tell) -> tuple[int, int]:
    tell("doubling")
    print("what a model prints")
    return 2 * argument, os.getpid()


def test_the_result_comes_from_another_process(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    value, process = run_isolated(doubled, 21, limit_s=inf, tell=seen.append)  # a task may have no limit
    assert (value, seen) == (42, ["doubling"]) and process != os.getpid()
    assert capfd.readouterr().out == ""  # stdout is the result's alone


def raises_bad_input(_argument: None, tell: Tell) -> None:
    raise BadInput("no such model")


def breaks(_argument: None, tell: Tell) -> None:
    tell("compiling")
    raise RuntimeError("no kernel\nfor this")


def crashes(_argument: None, tell: Tell) -> None:
    tell("timing")
    os.kill(os.getpid(), signal.SIGSEGV)


def test_bad_input_is_told_as_such() -> None:
    with pytest.raises(BadInput, match="no such model"):
        run_isolated(raises_bad_input, None, limit_s=LIMIT_S)


@pytest.mark.parametrize(
    ("task", "reason"),
    [(breaks, "RuntimeError: no kernel for this while compiling"), (crashes, "ended with SIGSEGV while timing")],
)
def test_what_breaks_says_where(task: Any, reason: str) -> None:
    with pytest.raises(GaveUp, match=reason):
        run_isolated(task, None, limit_s=LIMIT_S)


def sleeps_with_a_child(pid_file: str, tell: Tell) -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    Path(pid_file).write_text(f"{os.getpid()} {child.pid}")
    tell("compiling")
    time.sleep(600)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_a_phase_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with pytest.raises(GaveUp, match="compiling took longer than what it was given"):
        run_isolated(sleeps_with_a_child, str(file), limit_s=LIMIT_S, phase_limits={"compiling": 0.5})
    pids = [int(pid) for pid in file.read_text().split()]
    assert wait_until(lambda: all(map(gone, pids)))


def test_a_task_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(GaveUp, match="given up after"):
        run_isolated(sleeps_with_a_child, str(tmp_path / "pids"), limit_s=1.0)
    assert time.monotonic() - start < LIMIT_S


def told_in_turn(_argument: None, tell: Tell) -> str:
    for phase in ("compiling", "timing", "compiling", "timing"):
        tell(phase)
        time.sleep(0.4)
    return "done"


def test_a_phases_seconds_are_counted_together() -> None:
    assert run_isolated(told_in_turn, None, limit_s=LIMIT_S, phase_limits={"compiling": 20.0}) == "done"
    with pytest.raises(GaveUp, match="compiling took longer"):
        run_isolated(told_in_turn, None, limit_s=LIMIT_S, phase_limits={"compiling": 0.6})


def parent_that_waits(pid_file: str) -> None:
    run_isolated(sleeps_with_a_child, pid_file, limit_s=600)


def test_a_task_does_not_outlive_who_waits_for_it(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    parent = multiprocessing.get_context("spawn").Process(target=parent_that_waits, args=(str(file),))
    parent.start()
    assert wait_until(lambda: file.exists() and len(file.read_text().split()) == 2)
    parent.kill()
    parent.join()
    assert wait_until(lambda: all(gone(int(pid)) for pid in file.read_text().split()))


LOCKED = """
import multiprocessing, time
from mfubench.isolated import GaveUp, run_isolated

def locks(argument, tell):
    lock = multiprocessing.get_context("spawn").Lock()
    tell("locked")
    time.sleep(60)

if __name__ == "__main__":
    try:
        run_isolated(locks, None, limit_s=60, phase_limits={"locked": 0})
    except GaveUp as error:
        print(error)
"""


def test_what_a_process_that_was_ended_left_is_cleared_away_in_silence(tmp_path: Path) -> None:
    (tmp_path / "locked.py").write_text(LOCKED)
    done = subprocess.run(
        [sys.executable, "locked.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "locked took longer than what it was given\n" and done.stderr == ""
