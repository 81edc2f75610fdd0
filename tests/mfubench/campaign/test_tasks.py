"""What a campaign's tasks do about peers and configs that are left out, and about kernels that are not right."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mfubench.campaign import tasks
from mfubench.campaign.plan import KERNELS, Task, plan
from mfubench.campaign.store import Store
from mfubench.kernels import bench, tune
from mfubench.kernels.peers import CannotRun
from mfubench.measure import calibrate
from mfubench.measure.environment import device_name
from mfubench.report.campaign import campaign_page, results_table
from mfubench.report.markdown import render_page
from mfubench.worker import DONE, FAILED, PART, UNWATCHED, Answer, NotHere
from tests.mfubench.scaling.small import EVENTS, USERS, StandIn, write_log

BENCH = {"op": "rms_norm", "shape": "norm 295k x 512", "peers": [], "builtin": True}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tasks.Here:
    monkeypatch.setattr(tasks, "_require_right", lambda store, op, step="": None)
    monkeypatch.setattr("mfubench.measure.environment.device_uuid", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    return tasks.Here(torch.device("cuda"), Store(tmp_path), UNWATCHED, {})


def test_a_bench_goes_without_the_peers_that_are_left_out(monkeypatch: pytest.MonkeyPatch, here: tasks.Here) -> None:
    told: list[Any] = []

    def bench_op(*_: Any, peers: Any, watch: Any, **__: Any) -> list[Any]:
        watch.so_far(["ours"])
        with pytest.raises(CannotRun, match="took over 30 s"):
            next(peer for peer in peers if peer.name == "F.rms_norm").make(None)
        return [peer.name for peer in peers]

    monkeypatch.setattr(bench, "bench_op", bench_op)
    monkeypatch.setattr(bench, "document", lambda rows, device: {"rows": rows})
    watch = replace(UNWATCHED, so_far=told.append)
    here = replace(here, watch=watch, without={"F.rms_norm": "took over 30 s"})
    rows = tasks._bench(dict(BENCH), here)["rows"]
    assert told == [{"rows": ["ours"], "nvml": {}}] and rows[:2] == ["torch.compile(reference)", "F.rms_norm"]


def test_ours_alone_is_timed_without_peers(monkeypatch: pytest.MonkeyPatch, here: tasks.Here) -> None:
    monkeypatch.setattr(bench, "bench_op", lambda *_, peers, **__: peers)
    monkeypatch.setattr(bench, "document", lambda rows, device: {"rows": rows})
    assert tasks._bench({**BENCH, "builtin": False}, here)["rows"] == []


def test_tuning_goes_on_from_what_an_earlier_try_has(monkeypatch: pytest.MonkeyPatch, here: tasks.Here) -> None:
    arguments = {"op": "rms_norm", "shape": "norm 295k x 512"}
    here.store.write(Task("tune", "one", arguments), PART, "cut off", {"entries": [{"kernel": "a"}]})
    here.store.write(Task("tune", "other", {**arguments, "op": "gdpa"}), PART, "", {"entries": [{"kernel": "b"}]})
    told: list[Any] = []

    def tune_op(*_: Any, watch: Any, **chosen: Any) -> list[Any]:
        assert chosen["without"] == {"a config": "took over 30 s"} and not chosen["other_forms"]
        watch.so_far([{"kernel": "c"}])
        return [{"kernel": "c"}, {"kernel": "d"}]

    monkeypatch.setattr(tune, "tune_op", tune_op)
    watch = replace(UNWATCHED, so_far=told.append)
    here = replace(here, watch=watch, without={"a config": "took over 30 s"})
    found = tasks._tune(arguments, here)["entries"]
    assert [entry["kernel"] for entry in found] == ["a", "c", "d"]
    assert told == [{"entries": [{"kernel": "a"}, {"kernel": "c"}]}]


def test_a_step_is_tuned_where_its_own_contract_has_passed(monkeypatch: pytest.MonkeyPatch, here: tasks.Here) -> None:
    monkeypatch.undo()
    arguments = {"op": "layer_norm", "model": "kunlun", "size": "tiny", "mode": "train", "step": "kunlun-tiny"}

    def held(name: str, failed: bool, **more: Any) -> None:
        cases = [{"case": {"dtype": "bf16", "config": None}}] * failed
        document = {"ops": [{"op": "layer_norm", "failures": cases}]}
        given = {"op": "layer_norm", "part": 0, "parts": 1, **more}
        here.store.write(Task("contract", name, given), DONE, None, document)

    held("own", failed=False)
    with pytest.raises(NotHere, match="its contract has not passed"):
        tasks._tune(arguments, here)
    held("of the step", failed=True, step="kunlun-tiny")
    assert tasks.proved(here.store) == ["layer_norm"] and not tasks.proved(here.store, step="kunlun-tiny")
    held("of the step", failed=False, step="kunlun-tiny")
    assert tasks.proved(here.store, step="kunlun-tiny") == ["layer_norm"]
    asked: dict[str, Any] = {}
    monkeypatch.setattr(tune, "tune_op", lambda examples, device, **chosen: asked.update(chosen) or [])
    assert tasks._tune(arguments, here) == {"entries": []}
    assert asked["other_forms"] and "towers.clicks.layers.1.norm (layer_norm)" in asked["shapes"]


def test_a_profile_waits_for_the_contract_of_what_its_step_calls(here: tasks.Here) -> None:
    """With the reference where a contract was only cut off, a model of an H200's size ran out of memory."""

    def held(op: str, part: int) -> None:
        document = {"ops": [{"op": op, "failures": []}]}
        given = {"op": op, "part": part, "parts": 2}
        here.store.write(Task("contract", f"{op}-{part}", given), DONE, None, document)

    place = {"model": "kunlun", "size": "tiny", "mode": "train", "impl": KERNELS, "compile": "none", "batch_size": 2}
    for op, part in (("layer_norm", 0), ("layer_norm", 1), ("gdpa_block", 0), ("hstu_attention", 1)):
        held(op, part)
    with pytest.raises(NotHere, match=r"the contract of gdpa_block was cut off; the same command goes on"):
        tasks._profile(dict(place), here)
    held("gdpa_block", 1)
    impl = tasks._kernels(here.store, lambda: tasks._called(place))
    assert impl == "reference,gdpa_block=triton,layer_norm=triton", "hstu_attention is none of its ops"
    with pytest.raises(NotHere, match="the contract of hstu_attention"):
        tasks._kernels(here.store)


def test_kernels_are_timed_on_a_gpu_only(tmp_path: Path) -> None:
    here = tasks.Here(torch.device("cpu"), Store(tmp_path), UNWATCHED, {})
    with pytest.raises(NotHere, match="on a GPU only"):
        tasks._bench(dict(BENCH), here)


def test_tasks_take_the_peaks_that_their_campaign_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibrate, "_adopted", {})
    store, cpu = Store(tmp_path), torch.device("cpu")
    measured = calibrate.Calibration(device_name(cpu), {"fp32": 7.0}, 5.0, {}, "today", "2.13", 1, "once")
    store.write(Task("calibration", "peaks"), DONE, None, {"environment": {}, "by_dtype": {"fp32": asdict(measured)}})
    tasks._adopt_peaks(store)
    assert calibrate.load_or_calibrate(cpu, "fp32") == measured


def test_a_road_that_is_cut_off_leaves_the_steps_that_it_has(monkeypatch: pytest.MonkeyPatch, here: tasks.Here) -> None:
    class Made:
        def __init__(self, steps: int) -> None:
            self.steps = steps

        def to_json(self) -> str:
            return f'{{"steps": {self.steps}}}'

    class Climber:
        progress_made = (0, 3)

        def __init__(self, _spec: Any, _folder: Path) -> None: ...

        def climb(self, *, progress: Any) -> None:
            for done in range(3):
                for share in (0.0, 0.5):
                    progress("a step", share)
                self.progress_made = (done + 1, 3)

        def ablation(self) -> Made:
            return Made(self.progress_made[0])

    monkeypatch.setattr("mfubench.ablate.ladder.Ladder", Climber)
    monkeypatch.setattr("mfubench.report.ablation.ablation_page", lambda found: found)
    monkeypatch.setattr("mfubench.report.write_page", lambda _page, _folder: None)
    kept: list[Any] = []
    watch = replace(UNWATCHED, so_far=kept.append)
    last = tasks.run_task(
        watch, stage="road", arguments={"size": "tiny"}, device="cpu", folder=here.store.folder, without={}
    )
    assert (kept, last) == ([{"steps": 1}, {"steps": 2}], {"steps": 3})


def test_a_ladder_is_kept_as_it_is_climbed_and_shown_with_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = StandIn().installed(monkeypatch)
    stand_in.befall = lambda model, size, seed: Answer(FAILED, "it broke") if (size, seed) == ("base", 1) else None
    store = Store(tmp_path / "campaign")
    (task,) = plan("cpu", stages=["scale"], sizes=["tiny", "small", "base"], data=write_log(tmp_path / "log"))
    kept: list[Any] = []
    watch = replace(UNWATCHED, so_far=kept.append)
    given: dict[str, Any] = {"arguments": task.arguments, "device": "cpu", "folder": store.folder, "without": {}}
    told = tasks.run_task(watch, stage="scale", **given)
    assert [sum(len(point["seeds"]) for point in document["points"]) for document in kept] == [*range(1, 10), 10]
    assert told["settings"]["samples"] < task.arguments["samples"] and set(told["not_done"].values()) == {"it broke"}
    assert "it broke" in (store.folder / "scale" / task.name / "report.md").read_text()
    asked = len(stand_in.asked)
    tasks.run_task(watch, stage="scale", **given)
    assert len(stand_in.asked) == asked, "what is trained was trained again"
    store.open(told["environment"], [task])
    store.write(task, DONE, None, told)
    results = {"scale": store.shown("scale")}
    page = render_page(campaign_page(store.index(), results))
    assert "What compute buys, on kuairand" in page and "kunlun gains" in page
    assert "efficiency, times interformer's" in results_table(store.index(), results)


def test_a_ladder_on_a_gpu_takes_the_kernels_that_are_proved(here: tasks.Here, tmp_path: Path) -> None:
    (task,) = plan("cuda", stages=["scale"], data=write_log(tmp_path / "log"))
    with pytest.raises(NotHere, match="no kernel's contract has passed"):
        tasks._scale(dict(task.arguments), here)
    chosen = tasks.ladder_of(task.arguments, "cuda", "reference,gdpa=triton")
    assert chosen.spec.impl == "reference,gdpa=triton" and chosen.baseline == "interformer"
    assert chosen.settings.samples == USERS * EVENTS * 4 // 5
