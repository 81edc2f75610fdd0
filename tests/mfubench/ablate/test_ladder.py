"""Climbing the road: everything once, results kept as they come, what fails named, what is kept taken up again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mfubench.ablate.document import Ablation
from mfubench.ablate.ladder import FILE, Ladder
from mfubench.errors import BadInput, OutOfMemory, ToolBroke
from mfubench.run import read_run
from mfubench.workload.spec import WorkloadSpec
from tests.mfubench.ablate.machine import Machine

SPEC = WorkloadSpec("kunlun", size="tiny", device="cpu", steps=3)
NUM_SETTINGS, NUM_PAIRS = 16, 17  # the last step of the road is also the last switch taken out


def climbed(folder: Path | None = None, **options: Any) -> Ablation:
    ladder = Ladder(SPEC, folder)
    ladder.climb(**options)
    return ladder.ablation()


def raising(error: BaseException, when: Callable[[Any], bool]) -> Callable[[Any], None]:
    def fail(asked: Any) -> None:
        if when(asked):
            raise error

    return fail


def is_window_step(asked: Any) -> bool:
    return (
        isinstance(asked, WorkloadSpec)
        and asked.overrides["attention"] == "window"
        and (asked.overrides["comp_skip"] == "false" and asked.overrides["event_personalization"] == "false")
    )


def is_pair(asked: Any) -> bool:
    return isinstance(asked, tuple)


def test_every_setting_is_profiled_once_and_every_pair_timed_once(machine: Machine) -> None:
    ablation = climbed()
    assert ablation.complete and ablation.warnings == []
    assert len(machine.profiled) == NUM_SETTINGS and len(machine.timed) == NUM_PAIRS
    assert len({str(spec.overrides) for spec in machine.profiled}) == NUM_SETTINGS
    assert all(step.row is not None for step in ablation.steps)


def test_changes_are_of_the_rounds_in_turn_and_the_counted_flops(machine: Machine) -> None:
    ablation = climbed()
    change = ablation.change("road", "+gdpa")  # from 7 switches off to 6
    assert change is not None and change.in_turn and change.time_ratio is not None
    assert change.time_ratio.value == pytest.approx(16 / 17)
    assert change.time_ratio.ci95_high - change.time_ratio.ci95_low < 1e-12  # the pace is in both sides
    relative = {metric: found.value for metric, found in change.relative.items()}
    assert relative["samples_per_s"] == pytest.approx(17 / 16 - 1)
    assert relative["model_flops_per_sample"] == pytest.approx(16 / 17 - 1)
    assert relative["mfu"] == pytest.approx(0, abs=1e-12)
    whole = next(each for each in ablation.changes if each.kind == "whole")
    assert whole.relative["samples_per_s"].value == pytest.approx(0.8)


def test_the_same_timings_serve_the_road_and_the_switch_taken_out(machine: Machine) -> None:
    ablation = climbed()
    road, out = ablation.change("road", "+experts"), ablation.change("leave_one_out", "+experts")
    assert road is not None and out is not None
    assert road.timings_ms == out.timings_ms and road.before == out.before == "+event_personalization"


def test_published_changes_stand_beside_both(machine: Machine) -> None:
    ablation = climbed()
    kinds = {(each.step, each.metric, each.printed): set() for each in ablation.published}  # type: ignore[var-annotated]
    for each in ablation.published:
        kinds[each.step, each.metric, each.printed].add(each.kind)
    assert all(
        found == ({"whole"} if "interformer" in key[0] else {"road", "leave_one_out"}) for key, found in kinds.items()
    )
    window = [each for each in ablation.published if each.step == "+window" and each.kind == "road"]
    assert {each.metric: (each.sign, each.size) for each in window} == {
        "mfu": ("undecided", None),  # FLOPs and time fall alike on this machine
        "samples_per_s": ("agrees", "smaller"),
        "model_flops_per_sample": ("agrees", "smaller"),
    }
    experts = [each for each in ablation.published if each.step == "+experts"]
    assert all(each.sign is None and "one device" in each.reason for each in experts)


OUT_OF_MEMORY = {
    "refused beforehand": OutOfMemory("kunlun needs 99 GB"),
    "on a GPU": torch.OutOfMemoryError("CUDA out of memory"),
    "on a CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_out_of_memory_is_marked_and_the_ladder_goes_on(machine: Machine, kind: str) -> None:
    machine.fail = raising(OUT_OF_MEMORY[kind], is_window_step)
    ablation = climbed()
    lost = {step.name: step for step in ablation.steps if step.row is None}
    assert lost.keys() == {"+window"} and lost["+window"].status == "out_of_memory"
    assert lost["+window"].reason == str(OUT_OF_MEMORY[kind])
    without = {(each.kind, each.name): each for each in ablation.changes if each.time_ratio is None}
    assert without.keys() == {("road", "+window"), ("road", "+comp_skip")}
    assert all(each.status == "out_of_memory" and "+window" in each.reason for each in without.values())
    assert ablation.complete and len(machine.profiled) == NUM_SETTINGS - 1
    assert any("+window: out of memory" in sentence for sentence in ablation.not_measured)


def test_a_pair_that_does_not_fit_is_measured_apart_and_says_so(machine: Machine) -> None:
    machine.fail = raising(torch.OutOfMemoryError("CUDA out of memory"), is_pair)
    ablation = climbed()
    change = ablation.change("road", "+gdpa")
    assert change is not None and change.status == "done" and not change.in_turn
    assert change.time_ratio is not None and change.time_ratio.value == pytest.approx(16 / 17)
    assert "measured apart" in change.reason and "CUDA out of memory" in change.reason
    assert any("interformer and +towers were measured apart" in warning for warning in ablation.warnings)
    floor = next(each for each in ablation.changes if each.kind == "noise_floor")
    assert floor.time_ratio is None and floor.status == "out_of_memory"  # one run apart from itself says nothing


@pytest.mark.parametrize("error", [ToolBroke("two counts disagree"), BadInput("no"), RuntimeError("shape mismatch")])
def test_other_errors_end_the_ladder(machine: Machine, error: Exception) -> None:
    machine.fail = raising(error, is_window_step)
    with pytest.raises(type(error), match=str(error)):
        climbed()


def test_everything_is_in_the_folder(machine: Machine, tmp_path: Path) -> None:
    ablation = climbed(tmp_path)
    document = json.loads((tmp_path / FILE).read_text())
    assert document == json.loads(ablation.to_json()) and next(iter(document)) == "schema_version"
    assert document["complete"] is True
    for step in document["steps"]:
        assert read_run(tmp_path / step["run"]).workload["overrides"] == {
            key: str(value).lower() for key, value in step["switches"].items()
        }


@pytest.mark.parametrize("after", [0, 1, 2, 9, 20])
def test_an_interrupted_ladder_keeps_what_is_done_and_goes_on(machine: Machine, tmp_path: Path, after: int) -> None:
    asked: list[Any] = []

    def interrupt(what: Any) -> None:
        asked.append(what)
        if len(asked) == after + 1:
            raise KeyboardInterrupt

    machine.fail = interrupt
    with pytest.raises(KeyboardInterrupt):
        climbed(tmp_path)
    assert (tmp_path / FILE).exists() == bool(after)
    if after:
        document = json.loads((tmp_path / FILE).read_text())
        kept = [step["name"] for step in document["steps"] if step["status"] == "done"]
        assert len(kept) == len(machine.profiled) and document["complete"] is False
    machine.fail = lambda asked: None
    ablation = climbed(tmp_path)
    assert ablation.complete
    assert len(machine.profiled) == NUM_SETTINGS and len(machine.timed) == NUM_PAIRS  # nothing twice
    again, document = climbed(), json.loads((tmp_path / FILE).read_text())
    for part in ("steps", "changes", "published"):
        assert document[part] == json.loads(again.to_json())[part]


def test_a_complete_ladder_measures_nothing_again(machine: Machine, tmp_path: Path) -> None:
    first = climbed(tmp_path)
    machine.fail = raising(AssertionError("measured again"), lambda asked: True)
    assert climbed(tmp_path).changes == first.changes


def test_a_budget_stops_before_the_next_measurement(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("mfubench.ablate.ladder.monotonic", lambda: float(next(clock)))
    ablation = climbed(tmp_path, budget_s=3.5)
    assert not ablation.complete and len(machine.profiled) + len(machine.timed) == 3
    (left,) = [sentence for sentence in ablation.not_measured if "not reached" in sentence]
    assert "--budget 3.5s was spent" in left and "+hsp" in left and "interformer against +experts" in left
    assert climbed(tmp_path).complete and len(machine.profiled) == NUM_SETTINGS


OTHERS = {
    "size": WorkloadSpec("kunlun", size="small", device="cpu", steps=3),
    "steps": WorkloadSpec("kunlun", size="tiny", device="cpu", steps=4),
    "seed": WorkloadSpec("kunlun", size="tiny", device="cpu", steps=3, seed=1),
    "mode": WorkloadSpec("kunlun", size="tiny", device="cpu", steps=3, mode="infer"),
    "dtype": WorkloadSpec("kunlun", size="tiny", device="cpu", steps=3, dtype="bf16"),
    "overrides": WorkloadSpec("kunlun", size="tiny", device="cpu", steps=3, overrides={"activation": "silu"}),
}


@pytest.mark.parametrize("key", OTHERS)
def test_a_folder_of_another_ablation_is_refused(machine: Machine, tmp_path: Path, key: str) -> None:
    climbed(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(BadInput, match=rf"belongs to another ablation \({key} .*choose another --out"):
        Ladder(OTHERS[key], tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_another_release_or_device_makes_another_ablation(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbed(tmp_path)
    from mfubench.ablate import ladder

    found = ladder.environment(torch.device("cpu")) | {"device_name": "another CPU", "torch": "2.14"}
    monkeypatch.setattr(ladder, "environment", lambda device: found)
    with pytest.raises(BadInput, match=r"torch .* here; device_name .* another CPU here"):
        Ladder(SPEC, tmp_path)


def test_other_code_makes_another_ablation(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit that is not committed, too."""
    climbed(tmp_path)
    monkeypatch.setattr("mfubench.ablate.ladder.code_hash", lambda: "new")
    with pytest.raises(BadInput, match=r"belongs to another ablation \(other code\); choose another --out"):
        Ladder(SPEC, tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"schema_version": 99, "identity": {}, "steps": [], "changes": []}', b"\xff"]
)
def test_a_file_that_is_no_ablation_is_refused(machine: Machine, tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=r"ablation\.json is no ablation of this release; choose another --out"):
        Ladder(SPEC, tmp_path)


@pytest.mark.parametrize("part", ["steps", "changes"])
@pytest.mark.parametrize("entry", [3, {}, {"status": "done"}, {"timings_ms": {"before": [1]}}])
def test_an_ablation_whose_inside_does_not_fit_is_refused(
    machine: Machine, tmp_path: Path, part: str, entry: Any
) -> None:
    climbed(tmp_path)
    document = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(document | {part: [entry]}))
    with pytest.raises(BadInput, match="no ablation of this release"):
        Ladder(SPEC, tmp_path)


@pytest.mark.parametrize("timings", [["fast"] * 3, [1.0], [1.0, 2.0, 0.0], [1.0, 2.0, float("nan")], 3])
def test_timings_that_are_none_are_refused(machine: Machine, tmp_path: Path, timings: Any) -> None:
    climbed(tmp_path)
    document = json.loads((tmp_path / FILE).read_text())
    assert len(document["changes"][0]["timings_ms"]["after"]) == 3
    document["changes"][0]["timings_ms"]["after"] = timings
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(BadInput, match=r"no ablation of this release; choose another --out"):
        Ladder(SPEC, tmp_path)


def test_a_lost_run_is_measured_anew_and_named(machine: Machine, tmp_path: Path) -> None:
    climbed(tmp_path)
    (tmp_path / "runs" / "+hsp" / "run.json").unlink()
    ablation = climbed(tmp_path)
    assert ablation.complete and len(machine.profiled) == NUM_SETTINGS + 1
    assert any("+hsp was measured anew" in warning for warning in ablation.warnings)
    assert read_run(tmp_path / "runs" / "+hsp").workload["overrides"]["pooling"] == "hsp"


def test_a_machine_that_is_not_steady_is_warned_of(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def drifting(before: WorkloadSpec, after: WorkloadSpec, *_: Any) -> Any:
        return [10.0, 10.0, 10.0], [12.0, 12.1, 12.2]

    monkeypatch.setattr("mfubench.ablate.ladder.time_pair", drifting)
    warning, pace = climbed().warnings  # the runs apart are steady, so that both are told
    assert "the full model again took 1.210 times [1.200, 1.220] as long as itself" in warning
    assert "the machine changed its pace" in pace


def test_a_pace_that_changes_between_runs_is_warned_of_and_is_in_no_change(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is profiled a tenth slower than the one before; in turn, the two of a pair share the pace."""
    plain = machine.profile

    def profile(spec: WorkloadSpec, **options: Any) -> Any:
        run = plain(spec, **options)
        pace = 1.1 ** len(machine.profiled)
        run.step["timings_ms"] = [pace * time for time in run.step["timings_ms"]]
        return run

    monkeypatch.setattr("mfubench.ablate.ladder.profile_workload", profile)
    ablation = climbed()
    (warning,) = ablation.warnings
    assert "16 of 16 pairs have another ratio profiled apart than timed in turn, by up to 2.14 times" in warning
    change = ablation.change("road", "+gdpa")
    assert change is not None and change.relative["samples_per_s"].value == pytest.approx(17 / 16 - 1)


def test_a_single_pair_of_another_pace_is_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = machine.profile

    def profile(spec: WorkloadSpec, **options: Any) -> Any:
        run = plain(spec, **options)
        if len(machine.profiled) == NUM_SETTINGS:  # the full model without one switch, which is in one pair
            run.step["timings_ms"] = [1.03 * time for time in run.step["timings_ms"]]
        return run

    monkeypatch.setattr("mfubench.ablate.ladder.profile_workload", profile)
    (warning,) = climbed().warnings
    assert "1 of 16 pairs has another ratio" in warning


def test_settings_of_other_histories_are_not_one_switch_apart(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At size large the exposure tower keeps 1024 events, and 512 where all towers are alike."""
    plain = machine.profile

    def profile(spec: WorkloadSpec, **options: Any) -> Any:
        run = plain(spec, **options)
        run.workload["data_hash"] = f"data {spec.overrides['event_personalization']}"
        return run

    monkeypatch.setattr("mfubench.ablate.ladder.profile_workload", profile)
    ablation = climbed()
    personal = [each for each in ablation.published if each.step == "+event_personalization"]
    assert personal and all(each.sign is None and "other lengths" in each.reason for each in personal)
    assert any("+comp_skip and +event_personalization keep histories of other lengths" in w for w in ablation.warnings)
