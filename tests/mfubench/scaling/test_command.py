"""``mfubench scale``: from the command line to the folder, on a slice of a real log, and what it refuses."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfubench.cli import main
from tests.mfubench.scaling.small import StandIn, write_log

MODELS = ("--models", "dlrm,wukong", "--sizes", "tiny,small")
FEW = ("--samples", "512", "--evaluate", "400", "--device", "cpu")


def run(*arguments: str, code: int = 0) -> None:
    """Run the command line in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["scale", *arguments])
    assert ended.value.code == code


def test_it_trains_on_a_real_log_and_goes_on(test_data: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"kuairand:{test_data / 'kuairand-slice'}"
    asked = (*MODELS, *FEW, "--seeds", "1", "--data", data, "--out", str(out), "--json")
    run(*asked)
    printed, told_apart = capsys.readouterr()
    told = json.loads(printed)
    assert told["complete"] and told == json.loads((out / "scaling.json").read_text())
    assert "dlrm tiny seed" in told_apart
    assert {path.name for path in out.iterdir()} >= {
        "ladder.json",
        "peak.json",
        "trainings",
        "report.md",
        "report.html",
    }
    assert [(row["model"], row["size"]) for row in told["points"]] == [
        ("dlrm", "tiny"),
        ("dlrm", "small"),
        ("wukong", "tiny"),
        ("wukong", "small"),
    ]
    for row in told["points"]:
        assert row["samples"] == 512 and row["samples_per_s"] > 0 and row["flops_per_sample"] > 0
        assert row["mfu_of_measured_peak"] > 0 and 0.5 < row["ne"][0] < 2
    before = {path.name: path.stat().st_mtime_ns for path in (out / "trainings").iterdir()}
    run(*asked[:-1], "--quiet")
    assert before == {path.name: path.stat().st_mtime_ns for path in (out / "trainings").iterdir()}
    printed, told_apart = capsys.readouterr()
    assert "wukong" in printed and told_apart == ""


def test_ctrl_c_keeps_what_is_done(log: str, out: Path) -> None:
    asked = ("--models", "dlrm,kunlun", "--sizes", "tiny,base", *FEW[2:], "--data", log, "--out", str(out), "--quiet")
    code = f"import sys; sys.path[:] = {sys.path!r}; from mfubench.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "scale", *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = time.monotonic() + 120
    while not list(out.glob("trainings/*.json")) and time.monotonic() < ends:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    told = json.loads((out / "scaling.json").read_text())
    assert not told["complete"] and told["points"][0]["status"] == "done" and told["not_done"]
    assert "the same command goes on from what" in said and "Traceback" not in said


REFUSED = {
    "unknown model": (["--models", "nope", "--sizes", "tiny,small"], ["nope", "kunlun"]),
    "one's own model": (["--models", "a.b:build", "--sizes", "tiny,small"], ["a.b:build", "no sizes"]),
    "no model": (["--models", ",", "--sizes", "tiny,small"], ["--models", "names nothing"]),
    "unknown size": (["--models", "dlrm", "--sizes", "tiny,huge"], ["huge", "tiny", "xl"]),
    "one size": (["--models", "dlrm", "--sizes", "tiny,tiny"], ["--sizes", "at least 2 sizes"]),
    "another baseline": ([*MODELS, "--baseline", "kunlun"], ["--baseline kunlun", "dlrm, wukong"]),
    "0 samples": ([*MODELS, "--samples", "0"], ["--samples 0", "1 or more"]),
    "0 evaluated": ([*MODELS, "--evaluate", "0"], ["--evaluate 0", "1 or more"]),
    "0 seeds": ([*MODELS, "--seeds", "0"], ["--seeds 0", "1 or more"]),
    "0 a step": ([*MODELS, "--batch-size", "0"], ["--batch-size 0", "1 or more"]),
    "a budget in days": ([*MODELS, "--budget", "9d"], ["--budget 9d", "90s, 9m, 2h"]),
    "unknown impl": ([*MODELS, "--impl", "cuda"], ["cuda", "reference"]),
    "tf32 on a CPU": ([*MODELS, "--device", "cpu", "--dtype", "tf32"], ["tf32", "CUDA"]),
    "synthetic data": ([*MODELS, "--data", "synthetic"], ["synthetic", "formula", "kuairand:PATH"]),
    "unknown data": ([*MODELS, "--data", "criteo:x"], ["criteo", "kuairand", "movielens"]),
    "missing data": ([*MODELS, "--data", "kuairand:/nowhere"], ["/nowhere"]),
    "no size": (["--models", "dlrm"], ["--sizes"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses(case: str, log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, mentioned = REFUSED[case]
    data = [] if "--data" in arguments else ["--data", log]
    run(*arguments, *data, "--out", str(tmp_path / "out"), code=2)
    printed, said = capsys.readouterr()
    assert printed == "" and len(said.splitlines()) == 1
    assert all(words in said for words in mentioned), said
    assert not list(tmp_path.iterdir())


def test_labels_that_are_all_alike_and_windows_without_impressions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alike = write_log(tmp_path / "alike", clicks=lambda user, event: 1)
    run(*MODELS, "--data", alike, code=2)
    assert "have the label 1; NE needs both labels" in capsys.readouterr().err
    one = write_log(tmp_path / "one", users=1)
    file = tmp_path / "one" / "log_standard_small.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:2]) + "\n")
    run(*MODELS, "--data", one, code=2)
    assert "leaves a side empty" in capsys.readouterr().err


def test_nothing_trained_is_no_success(log: str, stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    from mfubench.worker import FAILED, Answer

    stand_in.befall = lambda model, size, seed: Answer(FAILED, "ValueError: no")
    run(*MODELS, "--data", log, "--device", "cpu", "--quiet", code=5)
    assert "no training was done" in capsys.readouterr().err
