"""What an ablation of Kunlun runs: each setting once, and each contrast one switch apart."""

from itertools import pairwise
from typing import Any

import pytest

from mfu_models import MODELS
from mfu_models.kunlun.road import START, STEPS, road
from mfubench.ablate.plan import REPEATED, Plan, make_plan
from mfubench.errors import BadInput
from mfubench.workload.spec import WorkloadSpec

KUNLUN = MODELS["kunlun"]


def config(plan: Plan, setting: str) -> Any:
    spec = plan.workload(setting)
    return KUNLUN.config(spec.size or "base", None, spec.overrides)


@pytest.fixture
def plan() -> Plan:
    return make_plan(WorkloadSpec("kunlun", size="small"))


def test_the_road_is_kunluns(plan: Plan) -> None:
    steps = road(KUNLUN.config("small"))
    assert [s.name for s in plan.settings if s.kind == "road"] == list(steps)
    assert {name: config(plan, name) for name in steps} == steps


def test_each_change_of_the_road_is_from_the_step_before(plan: Plan) -> None:
    names = list(STEPS)
    found = [(c.name, c.before, c.after) for c in plan.contrasts if c.kind == "road"]
    assert found == [(after, before, after) for before, after in pairwise(names)]


def test_each_switch_is_taken_out_of_the_full_model_alone(plan: Plan) -> None:
    full = KUNLUN.config("small")
    out = [contrast for contrast in plan.contrasts if contrast.kind == "leave_one_out"]
    assert [contrast.name for contrast in out] == list(STEPS)[1:]
    for contrast in out:
        (switch,) = STEPS[contrast.name]
        assert config(plan, contrast.after) == full
        assert config(plan, contrast.before) == KUNLUN.config("small", None, {switch: str(START[switch]).lower()})


def test_no_setting_is_there_twice(plan: Plan) -> None:
    configs = [config(plan, setting.name) for setting in plan.settings]
    assert len(set(map(repr, configs))) == len(configs) == len({s.name for s in plan.settings}) == 16


def test_the_whole_road_and_a_repeat_of_the_full_model_are_contrasts_too(plan: Plan) -> None:
    found = {contrast.kind: contrast for contrast in plan.contrasts}
    assert (found["whole"].before, found["whole"].after) == ("interformer", "+experts")
    assert found["noise_floor"].name == REPEATED and found["noise_floor"].before == found["noise_floor"].after


def test_every_published_change_is_of_a_contrast(plan: Plan) -> None:
    names = {contrast.name for contrast in plan.contrasts}
    assert {published.step for published in plan.road.published} <= names


def test_other_fields_are_the_users(plan: Plan) -> None:
    spec = WorkloadSpec("kunlun", size="small", overrides={"activation": "silu"}, batch_size=7, seed=3, steps=9)
    plan = make_plan(spec)
    for setting in plan.settings:
        workload = plan.workload(setting.name)
        assert (workload.batch_size, workload.seed, workload.steps) == (7, 3, 9)
        assert config(plan, setting.name).activation == "silu"


@pytest.mark.parametrize("model", ["dlrm", "interformer", "nope", "my.module:build"])
def test_a_model_without_a_road_is_told_which_have_one(model: str) -> None:
    with pytest.raises(BadInput, match=r"no road.*models that have one: kunlun"):
        make_plan(WorkloadSpec(model))


@pytest.mark.parametrize("switch", START)
def test_the_roads_own_switches_cannot_be_overridden(switch: str) -> None:
    with pytest.raises(BadInput, match=f"--set {switch}: the road"):
        make_plan(WorkloadSpec("kunlun", overrides={switch: "false"}))
