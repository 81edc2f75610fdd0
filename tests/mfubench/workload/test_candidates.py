"""Candidates a request: what the model sees, what is counted, and what two models need to compare."""

from dataclasses import replace
from pathlib import Path

import pytest

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfubench import profiling
from mfubench.cli import main
from mfubench.errors import BadInput
from mfubench.measure.calibrate import Calibration
from mfubench.workload import prepare as preparing
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec
from tests.mfubench.workload.whole_requests import SPEC

PEAKS = Calibration("any CPU", {"fp32": 1.0}, 10.0, {}, "2026-02-03", "2", 1, "not measured: a test's own")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in beside the zoo's models, and peaks that nothing needs to measure."""
    known = preparing.model_spec
    monkeypatch.setattr(profiling, "load_or_calibrate", lambda *_: PEAKS)
    monkeypatch.setattr(preparing, "model_spec", lambda name: SPEC if name == SPEC.name else known(name))


def prepared(model: str, candidates: int | None = None, **changes: object) -> Workload:
    spec = WorkloadSpec(model=model, size="tiny", device="cpu", batch_size=6, steps=2, candidates=candidates)
    return prepare(replace(spec, **changes))


def test_the_sizes_own_number_is_a_request_models_default() -> None:
    workload = prepared(SPEC.name)
    assert [(batch.num_requests, batch.num_candidates) for batch in workload.inputs] == [(6, 4)] * 2
    assert workload.description["num_candidates"] == 4 and workload.description["request_level"] is True


def test_candidates_override_the_config() -> None:
    workload = prepared(SPEC.name, 9)
    assert workload.module.config.num_candidates == workload.inputs[0].num_candidates == 9
    assert workload.num_samples == [6, 6] and workload.num_candidates == 9
    by_set = prepared(SPEC.name, overrides={"num_candidates": "9"})
    assert workload.description["model_hash"] == by_set.description["model_hash"]
    assert workload.description["data_hash"] == by_set.description["data_hash"]
    assert workload.description["model_hash"] != prepared(SPEC.name).description["model_hash"]


def test_an_impression_model_sees_every_candidate_with_the_whole_history() -> None:
    one, five = prepared("transformer"), prepared("transformer", 5)
    assert one.inputs[0].num_requests == 6 and five.inputs[0].num_requests == 30
    assert five.inputs[0].num_candidates == 1 and five.num_samples == [6, 6] and five.num_candidates == 5
    assert one.description["num_candidates"] == 1 and five.description["num_candidates"] == 5
    assert one.description["model_hash"] == five.description["model_hash"]
    requests = five.inputs[0].lengths()["impressions"][::5]
    exact, _ = five.needed(five.inputs[0])
    of_requests = MODELS["transformer"].model_flops(five.module.config, {"impressions": requests})
    assert exact.total == 5 * of_requests.total


def test_models_of_both_kinds_compare_on_the_same_requests() -> None:
    data = [prepared(model, 4).description["data_hash"] for model in (SPEC.name, "transformer", "kunlun")]
    other = [prepared("transformer", m).description["data_hash"] for m in (None, 1, 3, 4)]
    lengths = {
        tuple(map(tuple, prepared(model, 4).inputs[0].lengths().values())) for model in ("transformer", "kunlun")
    }
    assert len(lengths) == 1 and data[1] == data[2] == other[3]
    assert other[0] == other[1] and len(set(other)) == 3
    assert prepared(SPEC.name, 1).description["data_hash"] != data[0]


@pytest.mark.parametrize(
    ("name", "mode"),
    [*((name, "train") for name in (*MODELS, SPEC.name)), ("transformer", "infer"), (SPEC.name, "infer")],
)
def test_throughput_and_flops_by_request_and_candidate(name: str, mode: str) -> None:
    workload = prepared(name, 3, mode=mode)
    run = profiling.profile_workload(workload)  # raises if the count and the closed form disagree
    step, flops = run.step, run.flops
    assert step["samples_per_s"] == step["requests_per_s"] == pytest.approx(12 / sum(step["timings_ms"]) * 1e3)
    assert step["candidates_per_s"] == pytest.approx(3 * step["requests_per_s"])
    assert flops["per_request"] == pytest.approx(flops["model"] / 6) == pytest.approx(3 * flops["per_candidate"])
    if name == SPEC.name:
        assert flops["fwd_model"] == 6 * (1 + 3) * 2 * 24 * 8


def test_bad_numbers_of_candidates() -> None:
    with pytest.raises(BadInput, match="--candidates 0; allowed: 1 or more"):
        prepared("transformer", 0)
    with pytest.raises(BadInput, match="--candidates 2 and --set num_candidates say the same"):
        prepared(SPEC.name, 2, overrides={"num_candidates": "3"})
    with pytest.raises(InvalidArgument, match="num_candidates=0; allowed: at least 1"):
        prepared(SPEC.name, overrides={"num_candidates": "0"})
    with pytest.raises(InvalidArgument, match="'num_candidates' is not a field"):
        prepared("transformer", overrides={"num_candidates": "3"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["transformer", "--candidates", "-1"], "--candidates -1; allowed: 1 or more"),
        (["transformer", "--candidates", "many"], "Invalid value for '--candidates'"),
        (["own.model:build", "--candidates", "2"], "--candidates belongs to the zoo's models"),
        (
            ["transformer", "--size", "tiny", "--candidates", "615", "--data", "SLICE"],
            "num_candidates=615; allowed: 1 to",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slice_ = f"kuairand:{test_data / 'kuairand-slice'}"
    with pytest.raises(SystemExit) as left:
        main(["profile", *(slice_ if a == "SLICE" else a for a in arguments), "--device", "cpu", "--quiet"])
    out, err = capsys.readouterr()
    assert left.value.code == 2 and not out and said in err and err.count("\n") == 1
