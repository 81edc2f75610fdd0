"""What the commands print and write: results on stdout, everything else on stderr, files whole."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfubench.cli import main
from mfubench.measure.calibrate import Calibration
from mfubench.run import read_run

TINY = ("--size", "tiny", "--steps", "2", "--batch-size", "4", "--device", "cpu")


def run(*arguments: str) -> None:
    """Run the command line in this process, and expect success."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


@pytest.mark.parametrize("model", ["transformer", "kunlun"])
def test_profile_prints_one_document_and_progress_apart(
    model: str, capsys: pytest.CaptureFixture[str], fixed_calibration: Calibration
) -> None:
    run("profile", model, *TINY, "--json")
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["workload"]["model"] == model
    assert "timing step" in err
    run("profile", model, *TINY, "--json", "--quiet")
    assert capsys.readouterr().err == ""


def test_what_a_users_model_prints_is_no_part_of_the_result(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fixed_calibration: Calibration,
) -> None:
    """stdout holds one document, whatever the model says while it is built and run."""
    lines = ("import torch", "def build():", "    print('building')")
    (tmp_path / "talkative.py").write_text(
        "\n".join((*lines, "    return torch.nn.Linear(3, 1), lambda b, d: (print('batch') or torch.ones(b, 3),)"))
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run("profile", "talkative:build", "--device", "cpu", "--steps", "2", "--json", "--quiet")
    out, err = capsys.readouterr()
    assert json.loads(out)["workload"]["model"] == "talkative:build"
    assert err.splitlines() == ["building", "batch", "batch"]


def test_profile_table_names_every_cause(capsys: pytest.CaptureFixture[str], fixed_calibration: Calibration) -> None:
    run("profile", "kunlun", *TINY, "--quiet")
    out = capsys.readouterr().out
    for words in ("kunlun tiny", "useful", "launch", "optimizer", "total", "towers.clicks"):
        assert words in out


def test_out_holds_run_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fixed_calibration: Calibration
) -> None:
    folder = tmp_path / "a" / "b"
    run("profile", "transformer", *TINY, "--out", str(folder), "--trace", "--json")
    assert {path.name for path in folder.iterdir()} == {
        "run.json",
        "report.md",
        "report.html",
        "trace.json.gz",
        "tensorboard",
    }
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "run.json").read_text())
    assert read_run(folder).trace["path"] == "trace.json.gz"
    (log,) = (folder / "tensorboard").iterdir()
    assert log.name.endswith(".pt.trace.json.gz")  # by which torch-tb-profiler knows its files
    assert log.read_bytes() == (folder / "trace.json.gz").read_bytes()


def test_report_shows_several_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fixed_calibration: Calibration
) -> None:
    folders = [tmp_path / model for model in ("transformer", "kunlun")]
    for folder in folders:
        run("profile", folder.name, *TINY, "--out", str(folder), "--quiet", "--json")
    capsys.readouterr()
    run("report", *map(str, folders), "--out", str(tmp_path / "both"))
    assert "2 runs" in capsys.readouterr().out
    for name in ("report.md", "report.html"):
        text = (tmp_path / "both" / name).read_text()
        assert "transformer" in text and "kunlun" in text
    run("report", str(folders[0]), "--json")
    assert json.loads(capsys.readouterr().out)["workload"]["model"] == "transformer"
    run("report", *map(str, folders), "--json")
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_models_document(capsys: pytest.CaptureFixture[str]) -> None:
    run("models", "--json")
    listed = {model["name"]: model["sizes"] for model in json.loads(capsys.readouterr().out)}
    assert {"transformer", "kunlun"} <= listed.keys()
    for sizes in listed.values():
        for facts in sizes.values():
            assert facts["train_gflops_per_sample"] > facts["fwd_gflops_per_sample"] > 0
            assert facts["params"] > 0
    run("models")
    assert "large_plus" in capsys.readouterr().out


def test_doctor_document(capsys: pytest.CaptureFixture[str]) -> None:
    run("doctor", "--json", "--quiet")
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"environment", "peaks", "counters"}
    assert found["peaks"]["measured_fp32_tflops"] > 0


def test_no_arguments_show_help(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert "profile" in capsys.readouterr().out


def test_interrupt_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Ctrl-C in a long profile: exit code 130, one line, no file."""
    code = "from mfubench.cli import main; main()"
    arguments = ["profile", "transformer", "--size", "tiny", "--steps", "1000000", "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # A job that a shell put in the background ignores the signal, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "timing step" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and out == ""
    assert not (tmp_path / "out").exists()
