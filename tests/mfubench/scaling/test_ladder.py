"""A ladder's order, what it keeps and takes up again, what costs only its own point, and its document."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfu_kernels import lock
from mfubench.errors import BadInput
from mfubench.measure import calibrate
from mfubench.scaling import ladder as ladder_module
from mfubench.scaling.document import scaling_document
from mfubench.scaling.ladder import Ladder
from mfubench.scaling.plan import Plan
from mfubench.worker import DONE, FAILED, UNWATCHED, Answer
from tests.mfubench.scaling.small import ETAS, LEVEL, PEAK_TFLOPS, StandIn, a_plan

ALL = 12


def climbed(plan: Plan, folder: Path | None = None, **options: Any) -> dict[str, Any]:
    ladder = Ladder(plan, folder)
    ladder.climb(**options)
    document: dict[str, Any] = json.loads(json.dumps(scaling_document(ladder)))
    return document


def fit_of(told: dict[str, Any], model: str, axis: str) -> dict[str, Any]:
    (found,) = (fit for fit in told["fits"] if (fit["model"], fit["axis"]) == (model, axis))
    return dict(found)


def test_the_cheapest_size_of_all_models_comes_first(stand_in: StandIn, log: str) -> None:
    climbed(a_plan(log, sizes="base,tiny,small"))
    models = ("interformer", "kunlun")
    assert stand_in.asked == [
        (model, size, seed) for size in ("tiny", "small", "base") for seed in (0, 1) for model in models
    ]


def test_the_planted_law_and_its_efficiency_are_in_the_document(stand_in: StandIn, log: str) -> None:
    told = climbed(a_plan(log))
    assert told["schema_version"] == 1 and told["complete"] and told["not_done"] == {}
    for model, eta in ETAS.items():
        fit = fit_of(told, model, "flops")
        assert fit["eta"][0] == pytest.approx(eta, rel=1e-4) and fit["eta"][1] <= eta <= fit["eta"][2]
        assert fit["a"][0] == pytest.approx(LEVEL, abs=1e-5) and fit["c0"] == pytest.approx(1e7)
        assert fit["per_decade"][0] == pytest.approx(eta * np.log(10), rel=1e-4)
        assert fit["r2"] == pytest.approx(1, abs=1e-6) and fit["points"] == 3
    for axis in ("flops", "device_time"):  # this machine takes a second for each TFLOP of all models
        assert fit_of(told, "kunlun", axis)["efficiency"][0] == pytest.approx(2, rel=1e-3)
        assert fit_of(told, "interformer", axis)["efficiency"] == pytest.approx([1, 1, 1])
    row = told["points"][0]
    assert (row["model"], row["size"], row["status"], row["reason"]) == ("interformer", "tiny", "done", None)
    assert row["flops_per_sample"] == 1e6 and row["flops"] == 1e9 and row["seconds"] == 1e-3
    assert row["mfu_of_measured_peak"] == pytest.approx(1 / PEAK_TFLOPS)
    assert row["peak_seconds_per_sample"] == pytest.approx(PEAK_TFLOPS * 1e6)
    assert [seed["seed"] for seed in row["seeds"]] == [0, 1]
    assert row["ne"][1] < row["ne"][0] < row["ne"][2]
    assert told["data"]["impressions"] == [1440, 360] and told["settings"]["evaluated"] == 360


def test_the_baseline_is_whom_one_asks_for(stand_in: StandIn, log: str) -> None:
    told = climbed(a_plan(log, baseline="kunlun"))
    assert told["baseline"] == "kunlun"
    assert fit_of(told, "interformer", "flops")["efficiency"][0] == pytest.approx(0.5, rel=1e-3)


def test_two_sizes_have_slopes_and_no_ratio(stand_in: StandIn, log: str) -> None:
    told = climbed(a_plan(log, sizes="tiny,small"))
    fit = fit_of(told, "kunlun", "flops")
    assert fit["eta"][0] == pytest.approx(0.02, rel=1e-3) and fit["efficiency"] is None and fit["r2"] is None
    assert "nothing checks the law" in fit["why_not"]
    assert any("spans 1.00 decades" in warning for warning in told["warnings"])
    assert any("a line through 2 points" in warning for warning in told["warnings"])


def test_an_interrupted_ladder_goes_on(stand_in: StandIn, log: str, out: Path) -> None:
    def interrupted(model: str, size: str, seed: int) -> None:
        if len(stand_in.asked) == 5:
            raise KeyboardInterrupt

    stand_in.befall = interrupted
    ladder = Ladder(a_plan(log), out)
    with pytest.raises(KeyboardInterrupt):
        ladder.climb()
    told = scaling_document(ladder)
    assert ladder.progress_made == (5, ALL) and not told["complete"] and len(told["not_done"]) == ALL - 5
    assert told["not_done"]["kunlun base seed 1"] == "not reached yet"
    stand_in.befall = lambda model, size, seed: None
    told = climbed(a_plan(log), out)
    assert told["complete"] and len(stand_in.asked) == len(set(stand_in.asked)) == ALL and stand_in.peaks == 1
    again = climbed(a_plan(log), out)
    assert len(stand_in.asked) == ALL
    assert {key: again[key] for key in ("points", "fits")} == {key: told[key] for key in ("points", "fits")}


@pytest.mark.parametrize("name", ["kunlun-tiny-seed-1.json", "kunlun-tiny-seed-1.npy"])
def test_a_damaged_training_is_done_anew(stand_in: StandIn, log: str, out: Path, name: str) -> None:
    climbed(a_plan(log), out)
    (out / "trainings" / name).write_text("{")
    climbed(a_plan(log), out)
    assert len(stand_in.asked) == ALL + 1 and stand_in.asked[-1] == ("kunlun", "tiny", 1)


CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "sizes": ({"sizes": "tiny,small"}, ["sizes", "base"]),
    "seeds": ({"seeds": 3}, ["seeds 2 there, 3 here"]),
    "evaluated": ({"evaluated": 100}, ["evaluated None there, 100 here"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_folder_of_another_plan_is_refused(stand_in: StandIn, log: str, out: Path, case: str) -> None:
    climbed(a_plan(log), out)
    changes, said = CHANGES[case]
    with pytest.raises(BadInput, match="belongs to another ladder") as refused:
        Ladder(a_plan(log, **changes), out)
    assert all(words in str(refused.value) for words in [*said, "--out"])


def test_a_folder_of_other_code_or_data_is_refused(
    stand_in: StandIn, log: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.mfubench.scaling.small import write_log

    climbed(a_plan(log), out)
    with pytest.raises(BadInput, match=r"belongs to another ladder.*data"):
        Ladder(a_plan(write_log(tmp_path / "other", users=110)), out)
    monkeypatch.setattr(ladder_module, "code_hash", lambda: "new")
    with pytest.raises(BadInput, match=r"belongs to another ladder.*code"):
        Ladder(a_plan(log), out)


def test_a_folder_with_something_else_is_refused(log: str, out: Path) -> None:
    out.mkdir()
    (out / "ladder.json").write_text("[]")
    with pytest.raises(BadInput, match=r"ladder\.json is no ladder of this release; choose another --out"):
        Ladder(a_plan(log), out)


def test_what_fails_costs_its_own_point_and_is_tried_again(stand_in: StandIn, log: str, out: Path) -> None:
    reasons = {
        "small": Answer(FAILED, "its process ended with SIGKILL"),
        "base": Answer(DONE, None, "CUDA out of memory"),
    }
    stand_in.befall = lambda model, size, seed: reasons.get(size) if model == "kunlun" else None
    told = climbed(a_plan(log, sizes="tiny,small,base"), out)
    rows = {(row["model"], row["size"]): row for row in told["points"]}
    assert rows["kunlun", "small"]["status"] == "failed" and rows["kunlun", "base"]["status"] == "out_of_memory"
    assert told["complete"]  # nothing is left to reach
    assert told["not_done"] == {
        "kunlun small seed 0": "its process ended with SIGKILL",
        "kunlun small seed 1": "seed 0: its process ended with SIGKILL",
        "kunlun base seed 0": "CUDA out of memory",
        "kunlun base seed 1": "seed 0: CUDA out of memory",
    }
    fit = fit_of(told, "kunlun", "flops")
    assert fit["points"] == 1 and fit["eta"] is None and "2 sizes" in fit["why_not"]
    assert fit_of(told, "interformer", "flops")["points"] == 3
    stand_in.befall = lambda model, size, seed: None
    assert climbed(a_plan(log, sizes="tiny,small,base"), out)["not_done"] == {}


def test_a_seed_that_is_missing_is_named_and_its_point_stands(stand_in: StandIn, log: str) -> None:
    stand_in.befall = lambda model, size, seed: Answer(FAILED, "no") if (size, seed) == ("base", 1) else None
    told = climbed(a_plan(log))
    row = next(row for row in told["points"] if row["size"] == "base")
    assert row["status"] == "done" and row["reason"] == "1 of 2 seeds: no" and len(row["seeds"]) == 1


def test_a_budget_leaves_the_most_expensive(
    stand_in: StandIn, log: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(ladder_module, "monotonic", lambda: now[0])

    def takes(model: str, size: str, seed: int) -> None:
        now[0] += {"tiny": 1.0, "small": 10.0, "base": 100.0}[size]

    stand_in.befall = takes
    told = climbed(a_plan(log), out, budget_s=260)
    assert not told["complete"]
    # 44 s for tiny and small, then seed 0 of both models at base; another seed would take longer than is left.
    assert (
        told["not_done"]["interformer base seed 1"] == "16 s of the budget of 260 s were left; another seed took 100 s"
    )
    assert len(stand_in.asked) == 10 and stand_in.asked[-1] == ("kunlun", "base", 0)


def test_what_the_budget_cuts_off_says_so(stand_in: StandIn, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(ladder_module, "monotonic", lambda: now[0])

    def cut_off(model: str, size: str, seed: int) -> Answer | None:
        if size != "base":
            return None
        now[0] += 60
        return Answer(FAILED, "gave up after 60 s")

    stand_in.befall = cut_off
    told = climbed(a_plan(log), budget_s=60)
    assert told["not_done"]["interformer base seed 0"] == "the budget of 60 s ended after 60 s of it"
    assert told["not_done"]["kunlun base seed 0"] == "the budget of 60 s ended before it"
    assert {row["status"] for row in told["points"] if row["size"] == "base"} == {"not_reached"}


def test_without_a_peak_there_is_no_axis_of_device_time(stand_in: StandIn, log: str) -> None:
    run = stand_in.run
    stand_in.run = lambda work, *given, **more: (  # type: ignore[method-assign]
        Answer(FAILED, "too little memory") if work.__name__ == "peak_work" else run(work, *given, **more)
    )
    told = climbed(a_plan(log))
    assert {fit["axis"] for fit in told["fits"]} == {"flops"}
    assert told["points"][0]["mfu_of_measured_peak"] is None
    assert any("peak is not known: too little memory" in warning for warning in told["warnings"])


def test_a_worker_has_the_peak_and_the_configs_of_who_asks(
    stand_in: StandIn, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A campaign's own, which its process has adopted and no file of the machine holds."""
    cpu = torch.device("cpu")
    measured = calibrate.Calibration(calibrate.device_name(cpu), {"fp32": 7.0}, 5.0, {}, "today", "2.13", 1, "once")
    tuned = {**lock.committed()[0], "date": "2026-01-01"}
    given: list[dict[str, Any]] = []
    run = stand_in.run
    stand_in.run = lambda work, arguments, **more: given.append(arguments) or run(work, arguments, **more)  # type: ignore[method-assign, func-returns-value]

    def afresh() -> None:
        monkeypatch.setattr(calibrate, "_adopted", {})
        monkeypatch.setattr(lock, "_adopted", [])
        monkeypatch.setattr(lock, "_holds", None)

    afresh()
    calibrate.adopt(measured)
    lock.adopt([tuned])
    climbed(a_plan(log, sizes="tiny,small"))
    afresh()  # as in a process of its own
    peak, training = given[0], given[1]
    assert ladder_module.peak_work(UNWATCHED, **peak, without={})["tflops"] == 7.0
    monkeypatch.setattr(ladder_module, "train", lambda *_arguments, **_options: lock.merged())
    assert tuned in ladder_module.train_work(UNWATCHED, **training, without={})
    assert training["configs"] == [tuned], "what is committed is there as well"


def test_warnings_say_what_is_weak(stand_in: StandIn, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ETAS, "interformer", 0.0)
    monkeypatch.setattr("tests.mfubench.scaling.small.LEVEL", 1.1)
    told = climbed(a_plan(log, seeds=1, settings=replace(a_plan(log).settings, samples=10_000)))
    said = " ".join(told["warnings"])
    assert "one seed" in said and "2 steps a training are few" in said and "--samples 10000: the log has 1440" in said
    assert "interformer: the interval of eta by model FLOPs holds 0" in said
    assert "is not below the" in said
    monkeypatch.setitem(ETAS, "kunlun", -0.02)
    assert any("kunlun: its NE rises with model FLOPs" in each for each in climbed(a_plan(log))["warnings"])
    assert "baseline's eta" in fit_of(told, "kunlun", "flops")["why_not"]
