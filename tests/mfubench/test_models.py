"""``mfubench models``: one listing in three forms, and the zoo's README that was made from it."""

import json
from pathlib import Path

import pytest

from mfu_models import MODELS
from mfubench.cli import main
from mfubench.workload import zoo
from tests.mfubench.workload.whole_requests import SPEC

README = Path(__file__).resolve().parents[2] / "model_zoo" / "README.md"


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["models", *options])
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.fixture
def two_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline and one that scores whole requests, four candidates at its only size."""
    monkeypatch.setattr(zoo, "MODELS", {"transformer": MODELS["transformer"], SPEC.name: SPEC})


def test_the_readme_holds_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--markdown")
    assert README.read_text().endswith(f"\n\n{text}"), "print it again: see model_zoo/README.md"
    assert all(f"### {name}\n" in text for name in MODELS)


def test_json_has_flops_and_parameters_by_size(two_models: None, capsys: pytest.CaptureFixture[str]) -> None:
    transformer, whole = json.loads(printed(capsys, "--json"))
    assert transformer["name"] == "transformer" and list(transformer["sizes"]) == list(MODELS["transformer"].sizes)
    base, spec = transformer["sizes"]["base"], MODELS["transformer"]
    flops = spec.full_length_flops(spec.config("base"))
    assert base["fwd_gflops_per_sample"] == flops.fwd / 1e9 == base["fwd_gflops_per_candidate"]
    assert base["train_gflops_per_sample"] == flops.total / 1e9
    assert base["sequences"] == {"impressions": 256} and base["params"] > base["dense_params"] > 5e6
    tiny = whole["sizes"]["tiny"]
    assert tiny["num_candidates"] == 4 and tiny["fwd_gflops_per_sample"] == 5 * 2 * 24 * 8 / 1e9
    assert 4 * tiny["fwd_gflops_per_candidate"] == tiny["fwd_gflops_per_sample"]


@pytest.mark.parametrize("option", [(), ("--markdown",)])
def test_request_level_models_show_both_units(
    two_models: None, option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    baseline, whole = printed(capsys, *option).split(SPEC.name)
    assert "GFLOP/sample" in baseline and "candidates " not in baseline and "Baseline ranker" in baseline
    assert "GFLOP/request" in whole and "GFLOP/candidate" in whole and "GFLOP/sample" not in whole
    assert "It scores all candidates of a request" in whole and "clicks 16" in whole


def test_two_outputs_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["models", "--json", "--markdown"])
    assert left.value.code == 2 and "give one of them" in capsys.readouterr().err
