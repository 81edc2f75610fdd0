"""Ctrl-C at odd moments: while libraries are imported, which may swallow it, twice, and before the command listens."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from mfubench.cli import main
from mfubench.cli.progress import stages
from mfubench.cli.signals import ended_as_interrupted, go_on_unless_interrupted


def test_an_interrupt_that_was_swallowed_comes_with_the_next_stage() -> None:
    with ended_as_interrupted() as heard, stages(quiet=True) as progress:
        progress("one", 0.1)
        with suppress(KeyboardInterrupt):  # as numpy does while torch imports it
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            progress("two", 0.2)
        assert heard == [signal.SIGINT]
    with ended_as_interrupted():
        go_on_unless_interrupted()  # which is another command


def test_what_fails_after_an_interrupt_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half_imported() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise AttributeError("module 'numpy' has no attribute 'multiply'") from None

    monkeypatch.setattr("mfubench.workload.zoo.list_models", half_imported)
    with pytest.raises(SystemExit) as ended:
        main(["models"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "mfubench: interrupted; nothing was left half written\n"


def test_a_signal_that_comes_twice_at_once_leaves_cleaning_up_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("mfubench.cli.signals.monotonic", lambda: now[0])
    with ended_as_interrupted() as heard:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        now[0] += 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 3


def test_other_threads_are_left_alone() -> None:
    with ended_as_interrupted():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        thread = threading.Thread(target=go_on_unless_interrupted)  # whose error would fail this test
        thread.start()
        thread.join()


def test_before_it_listens_there_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    found = subprocess.run(
        [sys.executable, "-m", "mfubench", "models"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=50,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (found.returncode, found.stderr) == (-signal.SIGINT, "")
