"""What a campaign runs and in which order."""

from collections import Counter

import pytest

from mfu_kernels.registry import IMPLS
from mfu_models import MODELS
from mfubench.campaign.plan import (
    CONTRACT_PARTS,
    DEFAULTS,
    FIRST_PROFILES,
    FIRST_SHAPES,
    KERNELS,
    NEXT_PROFILES,
    STAGES,
    VARIANTS,
    plan,
)
from mfubench.errors import BadInput
from mfubench.kernels.catalog import examples_of, ops_with_kernels
from mfubench.workload.spec import WorkloadSpec


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_stages_come_in_order_of_value_and_nothing_twice(device: str) -> None:
    tasks = plan(device, tune=True)
    begun = list(dict.fromkeys(task.stage for task in tasks))
    assert set(begun) == set(STAGES) and begun[:4] == list(STAGES[:4]) and begun[-1] == STAGES[-1]
    assert len({task.id for task in tasks}) == len(tasks)
    parts = Counter(task.arguments["op"] for task in tasks if task.stage == "contract")
    assert parts == dict.fromkeys(ops_with_kernels(), CONTRACT_PARTS)
    assert not {"compile", "tune"} & {task.stage for task in plan(device)}


def test_the_first_shapes_and_the_claim_come_before_the_others() -> None:
    order = [(task.stage, task.arguments.get("shape", task.name)) for task in plan("cuda")]
    timed = [place for place in order if place[0] in ("bench", "profile")]
    first = [("bench", shape) for shapes in FIRST_SHAPES.values() for shape in shapes]
    claims, others = ([("profile", "-".join(place)) for place in group] for group in (FIRST_PROFILES, NEXT_PROFILES))
    assert timed[: len(claims)] == claims
    timed = timed[len(claims) :]
    assert set(timed[: len(first)]) == set(first) and timed[len(first) : len(first) + len(others)] == others
    benched = {(t.arguments["op"], t.arguments["shape"]) for t in plan("cuda") if t.stage == "bench"}
    assert benched == {(op, shape) for op in ops_with_kernels() for shape in examples_of(op).shapes}


def test_every_profile_is_a_workload_that_exists() -> None:
    for device in DEFAULTS:
        for task in plan(device):
            if task.stage == "profile":
                chosen = {key: task.arguments[key] for key in ("model", "size", "mode", "compile")}
                spec = WorkloadSpec(**chosen)
                assert task.arguments["impl"] in (KERNELS, *IMPLS)
                assert spec.size in MODELS[spec.model].sizes


def test_the_claim_comes_first_on_a_gpu() -> None:
    names = [task.name for task in plan("cuda") if task.stage == "profile"]
    claims = (*FIRST_PROFILES, *NEXT_PROFILES)
    assert names[: len(claims)] == ["-".join(place) for place in claims]
    assert {place[3] for place in claims} == set(VARIANTS)


def test_choices_narrow_the_plan() -> None:
    tasks = plan("cpu", stages=["profile"], sizes=["tiny"], models=["kunlun"])
    assert [task.name for task in tasks] == ["kunlun-tiny-train-eager", "kunlun-tiny-infer-eager"]
    assert {task.stage for task in plan("cuda", models=["dlrm"], tune=True)} == set(STAGES) - {"road"}


@pytest.mark.parametrize("choice", [{"stages": ["x"]}, {"models": ["x"]}, {"sizes": ["huge"]}])
def test_unknown_choices_name_what_there_is(choice: dict[str, list[str]]) -> None:
    with pytest.raises(BadInput, match="is unknown; allowed: "):
        plan("cpu", **choice)  # type: ignore[arg-type]


def test_peers_go_to_their_op() -> None:
    tasks = plan("cuda", stages=["bench"], peers=["gdpa=a.b:c", "gdpa=d:e", "rms_norm=f:g"])
    named = {task.arguments["op"]: task.arguments["peers"] for task in tasks}
    assert named["gdpa"] == ["a.b:c", "d:e"] and named["rms_norm"] == ["f:g"] and named["layer_norm"] == []


@pytest.mark.parametrize("peer", ["a.b:c", "nothing=a.b:c", "gdpa=a.b"])
def test_a_peer_of_no_op_is_refused(peer: str) -> None:
    with pytest.raises(BadInput, match=r"allowed: op=package\.module:function with an op of gdpa"):
        plan("cuda", peers=[peer])
