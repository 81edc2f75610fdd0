"""``mfubench sweep``: what it refuses, prints and writes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mfubench.cli import main
from mfubench.measure.calibrate import Calibration
from mfubench.run import read_run
from tests.mfubench.cli.test_bad_input import RECIPE
from tests.mfubench.cli.test_commands import run


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], mentioned: list[str]) -> None:
    """One line, exit code 2, and the line names what was given or is allowed."""
    with pytest.raises(SystemExit) as ended:
        main(["sweep", *arguments])
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (ended.value.code, out) == (2, "")
    assert all(words in line for words in mentioned), line


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "no sizes": (["dlrm", "--batch-sizes", "8,x"], ["--batch-sizes '8,x'", "'x' is no number", "1,8,64"]),
    "latency of a training": (["dlrm", "--p99-ms", "5"], ["--p99-ms", "--mode infer"]),
    "no latency": (["dlrm", "--mode", "infer", "--p99-ms", "0"], ["--p99-ms 0", "above 0"]),
    "few steps": (["dlrm", "--mode", "infer", "--p99-ms", "5", "--steps", "20"], ["20 steps", "--steps 100"]),
    "no budget": (["dlrm", "--budget", "0"], ["--budget 0", "above 0"]),
    "unknown mode": (["dlrm", "--mode", "serve"], ["serve", "train, infer"]),
    "no recipe": (["dlrm", "--recipe", "nowhere.toml"], ["nowhere.toml"]),
    "no model": ([], ["MODEL"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses(case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments, mentioned = REFUSED[case]
    refused(capsys, [*arguments, "--quiet", "--out", str(tmp_path / "out")], mentioned)
    assert not list(tmp_path.iterdir())


def test_it_refuses_a_recipe_that_sets_the_batch_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    refused(capsys, ["dlrm", "--recipe", str(file)], ["recipe.toml", "sets the batch size"])


def test_it_writes_what_it_prints_and_measures_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fixed_calibration: Calibration
) -> None:
    """A folder in which the same command goes on, and one more batch size is all that it then measures."""
    ran: list[object] = []

    def here(task: Callable[..., object], given: object, **_options: object) -> object:
        ran.append(given)
        return task(given, lambda stage: None)

    monkeypatch.setattr("mfubench.sweep.run_isolated", here)
    asked = ("sweep", "dlrm", "--size", "tiny", "--mode", "infer", "--steps", "2", "--device", "cpu", "--json")
    run(*asked, "--batch-sizes", "4,2", "--out", str(tmp_path))
    document = json.loads(capsys.readouterr().out)
    assert [(point["batch_size"], point["status"]) for point in document["points"]] == [(2, "done"), (4, "done")]
    assert json.loads((tmp_path / "sweep.json").read_text()) == document
    for size in (2, 4):
        assert read_run(tmp_path / f"batch-{size}").workload["batch_size"] == size
    assert "Where the steps go" in (tmp_path / "report.md").read_text() and (tmp_path / "report-1.svg").exists()
    assert len(ran) == 3, "the model's identity, and two batch sizes"
    run(*asked, "--batch-sizes", "2,4,8", "--out", str(tmp_path))
    assert len(ran) == 5, "its identity, and the third"
