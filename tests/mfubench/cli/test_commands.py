"""What the commands print and write: results on stdout, everything else on stderr, files whole."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mfubench.ablate import plan
from mfubench.cli import main
from mfubench.measure.calibrate import Calibration
from mfubench.run import read_run
from tests.mfubench.report.factory import a_run

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
    assert err.splitlines() == ["building", "batch", "batch", "batch"]  # the last one to see whether its size is heeded


def test_results_go_where_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed_calibration: Calibration
) -> None:
    """Wherever a user's model goes while it is built."""
    (tmp_path / "elsewhere").mkdir()
    built = "torch.nn.Linear(3, 1), lambda b, d: (torch.ones(b, 3),)"
    text = f"import os, torch\ndef build():\n    os.chdir('elsewhere')\n    return {built}\n"
    (tmp_path / "roaming.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run("profile", "roaming:build", "--device", "cpu", "--steps", "2", "--batch-size", "2", "--out", "out", "--quiet")
    assert (tmp_path / "out" / "run.json").exists() and not list((tmp_path / "elsewhere").iterdir())


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
    charts = {"report-1.svg", "report-2.svg"}
    reports = {"run.json", "report.md", "report.html"}
    assert {path.name for path in folder.iterdir()} == {*reports, *charts, "trace.json.gz", "tensorboard"}
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


@pytest.fixture
def short_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kunlun's road, ended after its second switch."""
    whole = plan.ROADS["kunlun"]
    steps = dict(list(whole.steps.items())[:3])
    start = {switch: whole.start[switch] for change in steps.values() for switch in change}
    monkeypatch.setattr(plan, "ROADS", {"kunlun": replace(whole, start=start, steps=steps)})


ABLATE = ("ablate", "kunlun", *TINY)


def test_ablate_writes_what_it_prints_and_measures_nothing_twice(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fixed_calibration: Calibration,
    short_road: None,
) -> None:
    run(*ABLATE, "--out", str(tmp_path), "--json")
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((tmp_path / "ablation.json").read_text())
    assert "+gdpa: timing in turn with +towers" in err
    names = ["interformer", "+towers", "+gdpa", "without_towers"]
    document = json.loads(out)
    assert [step["name"] for step in document["steps"]] == names and document["complete"]
    runs = {name: read_run(tmp_path / "runs" / name) for name in names}
    assert {r.workload["data_hash"] for r in runs.values()} == {runs["interformer"].workload["data_hash"]}
    assert len({r.workload["model_hash"] for r in runs.values()}) == len(names)
    for change in document["changes"]:
        assert change["in_turn"] and [len(own) for own in change["timings_ms"].values()] == [2, 2]
        flops = [runs[change[side]].flops["per_request"] for side in ("before", "after")]
        assert change["relative"]["model_flops_per_sample"]["value"] == pytest.approx(flops[1] / flops[0] - 1)
    for name in ("report.md", "report.html"):
        assert all(step in (tmp_path / name).read_text() for step in ("interformer", "without it"))

    monkeypatch.setattr("mfubench.ablate.ladder.prepare", lambda *_: pytest.fail("measured again"))
    run(*ABLATE, "--out", str(tmp_path), "--quiet")
    out, err = capsys.readouterr()
    assert "The road, one switch a step" in out and err == ""


@pytest.mark.parametrize("source", ["kuairand:{}/kuairand-slice", "movielens:{}/ml-latest-small"])
def test_ablate_on_recorded_data(
    source: str,
    test_data: Path,
    capsys: pytest.CaptureFixture[str],
    fixed_calibration: Calibration,
    short_road: None,
) -> None:
    run(*ABLATE, "--mode", "infer", "--data", source.format(test_data), "--json", "--quiet")
    document = json.loads(capsys.readouterr().out)
    assert document["complete"] and source.partition(":")[0] in document["workload"]["data_description"].lower()
    assert all(step["row"]["model_flops_per_sample"] > 0 for step in document["steps"])


def test_ablate_ends_with_its_budget_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fixed_calibration: Calibration, short_road: None
) -> None:
    run(*ABLATE, "--budget", "0.000001s", "--out", str(tmp_path))
    assert "0 of 4 settings" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_compare_holds_runs_against_a_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fixed_calibration: Calibration
) -> None:
    folders = [tmp_path / model for model in ("transformer", "kunlun")]
    for folder in folders:
        run("profile", folder.name, *TINY, "--out", str(folder), "--quiet", "--json")
    capsys.readouterr()
    run(
        "compare",
        *map(str, folders),
        "--baseline",
        str(folders[1] / "run.json"),
        "--out",
        str(tmp_path / "both"),
        "--json",
    )
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "both" / "comparison.json").read_text())
    first, second = document["runs"]
    assert document["comparable"] and document["baseline"] == 1
    assert second["time_ratio"] == {"value": 1, "ci95_low": 1, "ci95_high": 1}
    assert first["time_ratio"]["value"] == pytest.approx(first["time_ms"]["value"] / second["time_ms"]["value"])
    for line in document["ledger"]:
        assert line["more_ms"] == pytest.approx([line["ms"][0] - line["ms"][1], 0])
    run("compare", *map(str, folders), "--quiet")
    assert "2 runs that compare" in capsys.readouterr().out


def test_compare_says_everywhere_that_it_was_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, mode in (("a", "train"), ("b", "infer")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(a_run(workload={"mode": mode}).to_json())
    arguments = ("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--force", "--out", str(tmp_path / "out"))
    run(*arguments)
    said = "do not compare: mode differs"
    assert said in capsys.readouterr().out
    assert all(said in (tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    run(*arguments, "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["comparable"] is False and document["apart"] == {"mode": ["train", "infer"]}


def test_compare_says_what_bounds_each_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, warnings in (("a", []), ("b", ["the timings have two modes"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(a_run(warnings=warnings).to_json())
    arguments = ("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    run(*arguments, "--out", str(tmp_path / "out"))
    told, page = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    assert all("run 2: the timings have two modes" in text and "run 1:" not in text for text in (told, page))
    assert str(tmp_path / "b") in page
    run(*arguments, "--json")
    assert [found["warnings"] for found in json.loads(capsys.readouterr().out)["runs"]] == [
        [],
        ["the timings have two modes"],
    ]


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


def test_doctor_says_what_a_busy_machine_spoils(
    fixed_calibration: Calibration, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = replace(fixed_calibration, cpu_share=0.4)
    monkeypatch.setattr("mfubench.measure.calibrate.BUSY", 0.8)
    monkeypatch.setattr("mfubench.doctor.load_or_calibrate", lambda *args, **options: busy)
    run("doctor", "--json", "--quiet")
    peaks = json.loads(capsys.readouterr().out)["peaks"]
    told = "the machine is busy: 40% of its threads' time on a processor"
    assert peaks["fp32 not kept"] == peaks["bf16 not kept"] == told


def test_no_arguments_show_help(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert "profile" in capsys.readouterr().out


def interrupted(*arguments: str, when: Callable[[str], bool]) -> str:
    """Ctrl-C at the first line of progress that ``when`` says: exit code 130, nothing on stdout. Gives stderr."""
    code = "from mfubench.cli import main; main()"
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
        if when(line):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and out == ""
    return err


def test_interrupt_leaves_nothing_half_written(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    command = ("profile", "transformer", "--size", "tiny", "--steps", "1000000", "--out", out)
    interrupted(*command, when=lambda line: "timing step" in line)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_ablation_keeps_what_is_done(tmp_path: Path) -> None:
    err = interrupted(*ABLATE, "--out", str(tmp_path / "out"), when=lambda line: "+towers: building" in line)
    assert "mfubench: 1 of 34 measurements done; the same command goes on" in err
    document = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [step["name"] for step in document["steps"] if step["status"] == "done"] == ["interformer"]
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"ablation.json", "report.md", "report-1.svg", "report.html", "runs"}
    assert read_run(tmp_path / "out" / "runs" / "interformer").title == "kunlun tiny train fp32"
