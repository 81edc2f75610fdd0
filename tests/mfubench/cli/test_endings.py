"""How commands end: by a signal, on a full disk, without a stdout, beside another that writes into the same folder."""

import json
import os
import signal
from pathlib import Path

import pytest

from mfubench import __version__
from mfubench.cli import main
from mfubench.cli.folders import LEFT, own_folder, sole_writer
from mfubench.cli.options import seconds
from mfubench.errors import BadInput
from mfubench.files import write_text
from mfubench.measure.calibrate import Calibration
from mfubench.run import write_run
from mfubench.user_code import short
from tests.mfubench.report.factory import a_run


@pytest.mark.parametrize(
    ("given", "wanted"), [("600", 600.0), ("1.5", 1.5), ("90s", 90.0), ("10m", 600.0), ("2h", 7200.0)]
)
def test_a_time_limit_is_in_seconds_or_says_its_unit(given: str, wanted: float) -> None:
    assert seconds("--timeout", given) == wanted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_it_from_outside_cleans_up_as_an_interrupt_does(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned = []

    def terminated(**_: object) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(True)

    monkeypatch.setattr("mfubench.doctor.examine", terminated)
    found = signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may not hear it
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--quiet"])
    (out, err), code = capsys.readouterr(), ended.value.code
    assert (code, out, cleaned) == (128 + number, "", [True])
    assert err.strip().splitlines()[-1] == f"mfubench: ended by {number.name}; nothing was left half written"
    assert signal.getsignal(number) is before
    signal.signal(number, found)


def test_nohup_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfubench.doctor.examine", lambda **_: os.kill(os.getpid(), signal.SIGHUP) or {})
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["doctor", "--quiet", "--json"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended.value.code == 0


def test_two_commands_do_not_mix_their_results_in_one_folder(tmp_path: Path) -> None:
    place = tmp_path / "out" / "here"
    with sole_writer(place):
        with pytest.raises(BadInput, match="another mfubench works there"), sole_writer(place):
            pass
        (place / "kept").touch()
    with sole_writer(place), sole_writer(tmp_path / "none" / "either"), sole_writer(None):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "here", "kept"]  # empty ones are gone


@pytest.mark.parametrize("command", LEFT)
def test_a_folder_of_another_command_is_left_alone(command: str, tmp_path: Path) -> None:
    own_folder(tmp_path / "new", command)
    (tmp_path / LEFT[command]).touch()
    own_folder(tmp_path, command)
    for other in {*LEFT, "report"} - {command}:
        with pytest.raises(BadInput, match=f"has what `mfubench {command}` left"):
            own_folder(tmp_path, other)


def test_each_command_has_files_of_its_own() -> None:
    assert len(set(LEFT.values())) == len(LEFT)


def test_a_report_may_be_written_beside_its_own_run_alone(tmp_path: Path) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    for folder in (mine, others):
        write_run(a_run(), folder)
    assert ended("report", str(mine / "run.json"), "--out", f"{mine}/.") == 0 and (mine / "report.html").exists()
    assert ended("report", str(mine), "--out", str(others)) == 2 and not (others / "report.html").exists()
    assert ended("scale", "--out", str(mine)) == 2


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(str(left.value.code))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"No space left on device: .*report\.md"):
        write_text(tmp_path / "report.md", "text")
    assert not list(tmp_path.iterdir())


def test_without_stdout_nothing_is_called_a_defect(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(SystemExit) as ended:
        main(["models", "--json"])
    assert ended.value.code == 5 and "stdout is closed" in capfd.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"mfubench {__version__}\n"


def test_an_error_keeps_its_end_where_compilers_say_what_is_wrong() -> None:
    told = short(ValueError(f"at 6:25: {'source ' * 100} module has no attribute 'nosuch'"))
    assert told.startswith("ValueError: at 6:25: source") and told.endswith("no attribute 'nosuch'")
    assert len(told) < 230


def test_a_run_that_cannot_be_written_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fixed_calibration: Calibration
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mfubench.run.write_text", full)
    workload = ("dlrm", "--size", "tiny", "--batch-size", "2", "--steps", "1", "--device", "cpu")
    with pytest.raises(SystemExit) as ended:
        main(["profile", *workload, "--out", str(tmp_path), "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert ended.value.code == 5 and "No space left on device" in err and len(err.splitlines()) == 1
    assert json.loads(out)["workload"]["model"] == "dlrm"


def test_steps_have_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["profile", "dlrm", "--steps", "99999999999"])
    assert ended.value.code == 2 and "--steps 99999999999; allowed: 1 to 10000000" in capsys.readouterr().err
