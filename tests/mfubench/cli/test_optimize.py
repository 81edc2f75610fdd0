"""``mfubench optimize`` in its real processes: a Triton kernel swapped in, and a search that goes on after Ctrl-C."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mfu_kernels.registry import interpreting
from mfubench.isolated import GaveUp, run_isolated
from mfubench.measure.calibrate import Calibration
from mfubench.optimize.recipe import read_recipe
from mfubench.optimize.search import optimize
from mfubench.optimize.tasks import identify, take_stock
from mfubench.run import read_run
from tests.mfubench.cli.test_commands import interrupted, run

OP = "sum_kron_linear"  # the quickest of kunlun's under the interpreter


def search_with(monkeypatch: pytest.MonkeyPatch, runner: Callable[..., Any]) -> None:
    """Let the command's search run its tasks by ``runner``."""
    monkeypatch.setattr("mfubench.optimize.search.optimize", partial(optimize, run=runner))


def only_op(task: Any, argument: Any, **limits: Any) -> Any:
    """Processes as always; of the ops, one has a remedy."""
    found = run_isolated(task, argument, **limits)
    if task is take_stock:
        found[2].ops = {OP: found[2].ops[OP]}
    return found


@pytest.mark.skipif(not interpreting(), reason="an interpreted kernel's way; on a GPU it is compiled, and timed")
def test_a_kernel_is_swapped_in_checked_written_and_profiled(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fixed_calibration: Calibration,  # of this process, which profiles with the recipe
) -> None:
    search_with(monkeypatch, only_op)
    one_layer = ("--size", "tiny", "--set", "num_layers=1", "--set", "engagement.num_layers=1")
    tiny = ("kunlun", *one_layer, "--batch-size", "2", "--steps", "2", "--device", "cpu", "--quiet", "--json")
    run("optimize", *tiny, "--judge", "numbers", "--out", str(tmp_path))
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "optimize.json").read_text())
    (step,) = document["steps"]
    assert (step["change"], step["kept"]) == (f"impl {OP}=triton", True) and document["speedup"] is None
    assert any("of its budget, within it" in line for line in step["numbers"])
    assert any(line.startswith("losses of 20 steps") for line in step["numbers"])
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert [change.title for change in recipe.changes] == [step["change"]]
    assert read_run(tmp_path / "start").impls[OP] == "reference" and read_run(tmp_path / "end").impls[OP] == "triton"

    run("profile", *tiny, "--recipe", str(tmp_path / "recipe.toml"))
    profiled = json.loads(capsys.readouterr().out)
    others = {op for op, impl in profiled["impls"].items() if impl == "reference"}
    assert profiled["impls"][OP] == "triton" and others == profiled["impls"].keys() - {OP}


def test_an_interrupted_search_goes_on_with_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing compiles in the time that it gets, so that the first trial ends soon, whatever it is of."""
    command = ("optimize", "dlrm", "--size", "tiny", "--batch-size", "8", "--steps", "2", "--mode", "infer")
    command = (*command, "--device", "cpu", "--compile-budget", "0.1s", "--out", str(tmp_path / "out"))

    def logged() -> list[Any]:
        log = tmp_path / "out" / "optimize.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    err = interrupted(*command, when=lambda line: any(fact["kind"] == "step" for fact in logged()))
    assert f"the same command goes on from what {tmp_path / 'out'} keeps" in err
    assert [fact["kind"] for fact in logged()][:3] == ["search", "survey", "step"]
    decided = logged()[2]["step"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"optimize.jsonl", "start"}

    asked = []

    def runner(task: Any, argument: Any, **limits: Any) -> Any:
        if task is identify:
            return run_isolated(task, argument, **limits)
        asked.append(task)
        if hasattr(argument, "change"):
            asked.append(argument.change.title)
        raise GaveUp("of no concern here")

    search_with(monkeypatch, runner)
    run(*command, "--json", "--quiet")
    document = json.loads(capsys.readouterr().out)
    assert document["resumed"] and document["steps"][0] == decided and len(document["steps"]) > 1
    assert take_stock not in asked and decided["change"] not in asked
    assert (tmp_path / "out" / "recipe.toml").exists()
