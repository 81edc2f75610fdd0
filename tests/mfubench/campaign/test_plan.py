"""What a campaign runs and in which order."""

from collections import Counter
from itertools import pairwise
from typing import Any

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
    SHARES,
    STAGES,
    TUNED_STEPS,
    VARIANTS,
    ZOO,
    plan,
)
from mfubench.campaign.tasks import with_kernels
from mfubench.errors import BadInput
from mfubench.kernels.catalog import examples_of, ops_with_kernels
from mfubench.tuning.calls import calls_without_numbers
from mfubench.workload.spec import WorkloadSpec

LOG = "kuairand:a folder"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_stages_come_in_order_of_value_and_nothing_twice(device: str) -> None:
    tasks = plan(device, tune=True, data=LOG)
    begun = list(dict.fromkeys(task.stage for task in tasks))
    timed = ("compile", "tune", "bench")  # kernels, on a GPU
    assert begun == [stage for stage in STAGES if device == "cuda" or stage not in timed]
    assert set(STAGES) == {"road", *SHARES}
    assert len({task.id for task in tasks}) == len(tasks)
    parts = Counter(task.arguments["op"] for task in tasks if task.stage == "contract" and "step" not in task.arguments)
    assert parts == dict.fromkeys(ops_with_kernels(), CONTRACT_PARTS)
    assert not {"compile", "tune"} & {task.stage for task in plan(device)}


def test_ours_comes_first_then_the_claim_then_the_peers() -> None:
    tasks = plan("cuda", tune=True, peers=["gdpa=a.b:c", "gdpa=d:e", "rms_norm=f:g"])
    begun = [task.id for task in tasks]
    first = [f"{op}-{shape}".replace(" ", "-") for op, shapes in FIRST_SHAPES.items() for shape in shapes]
    foremost = [f"{op}-{shapes[0]}".replace(" ", "-") for op, shapes in FIRST_SHAPES.items()]
    alone, torchs = [f"bench/{name}" for name in first], [f"bench/{name}-beside-torch" for name in foremost]
    later = [f"bench/{name}-beside-torch" for name in first if name not in foremost]
    named = [task for task in tasks if task.stage == "bench" and task.arguments["peers"]]
    of_first = [task.id for task in named if task.id.startswith(tuple(f"bench/{name}-beside" for name in foremost))]
    claims, nexts = ([f"profile/{'-'.join(place)}" for place in group] for group in (FIRST_PROFILES, NEXT_PROFILES))
    tuned = [f"tune/{op}-{shape}".replace(" ", "-") for op in ops_with_kernels() for shape in ZOO]
    rest = [task.id for task in tasks if task.stage == "profile"][len(claims) + len(nexts) :]
    turns = [tuned, alone, claims, torchs, of_first, nexts, ["road/kunlun-large"], later, rest]
    places = [[begun.index(one) for one in turn if one in begun] for turn in turns]
    assert all(places)
    for before, after in pairwise(places):
        assert max(before) < min(after)
    ours = [at for at, task in enumerate(tasks) if task.stage == "bench" and task.arguments["op"] == "gdpa"][:4]
    assert max(ours) < min(at for at, task in enumerate(tasks) if task in named)
    for name in first:
        assert begun.index(f"tune/{name}") == begun.index(f"bench/{name}") - 1


@pytest.mark.parametrize("place", TUNED_STEPS)
def test_a_step_of_no_named_shape_is_tuned_before_its_profile(place: tuple[str, ...]) -> None:
    """For all ops with kernels that it calls, and no others."""
    begun = [task.id for task in plan("cuda", tune=True)]
    name, ops = "-".join(place), TUNED_STEPS[place]
    at = begun.index(f"profile/{name}")
    stages = [f"{stage}/{name}-{op}" for stage in ("contract", "compile", "tune") for op in ops]
    assert begun[at - len(stages) : at] == stages and place in NEXT_PROFILES
    assert not any(task.id.startswith(f"tune/{name}") for task in plan("cuda"))
    model, size, mode, _ = place
    spec = WorkloadSpec(model, size, mode=mode, batch_size=4, impl=with_kernels(ops_with_kernels()))
    assert {call.op for call in calls_without_numbers(spec)} == set(ops)


def test_every_shape_is_timed_alone_and_beside_peers() -> None:
    tasks = [task.arguments for task in plan("cuda", stages=["bench"])]
    shapes = {(op, shape) for op in ops_with_kernels() for shape in examples_of(op).shapes}
    for builtin in (False, True):
        assert {(one["op"], one["shape"]) for one in tasks if one["builtin"] is builtin} == shapes


def test_tuning_first_makes_another_result() -> None:
    def arguments(tune: bool) -> list[Any]:
        return [task.arguments for task in plan("cuda", tune=tune) if task.stage in ("bench", "profile")]

    assert not any(one in arguments(tune=False) for one in arguments(tune=True))


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


def test_the_contract_is_held_at_the_shapes_that_are_tuned() -> None:
    tasks = plan("cuda", tune=True)
    contracts = [task.arguments for task in tasks if task.stage == "contract"]
    held = {(one["op"], shape) for one in contracts for shape in one.get("shapes", [one.get("step")])}
    tuned = [task.arguments for task in tasks if task.stage == "tune"]
    assert held == {(one["op"], one.get("shape", one.get("step"))) for one in tuned}


def test_choices_narrow_the_plan() -> None:
    tasks = plan("cpu", stages=["profile"], sizes=["tiny"], models=["kunlun"])
    assert [task.name for task in tasks] == ["kunlun-tiny-train-eager", "kunlun-tiny-infer-eager"]
    assert {task.stage for task in plan("cuda", models=["dlrm"], tune=True)} == set(STAGES) - {"road", "scale"}


@pytest.mark.parametrize("choice", [{"stages": ["x"]}, {"models": ["x"]}, {"sizes": ["huge"]}])
def test_unknown_choices_name_what_there_is(choice: dict[str, list[str]]) -> None:
    with pytest.raises(BadInput, match="is unknown; allowed: "):
        plan("cpu", **choice)  # type: ignore[arg-type]


def test_each_peer_has_tasks_of_its_own() -> None:
    tasks = plan("cuda", stages=["bench"], peers=["gdpa=a.b:c", "gdpa=d:e", "rms_norm=f:g"])
    named = {task.name: task.arguments for task in tasks if task.arguments["shape"] in ("X1024", "norm 295k x 512")}
    assert {name: found["peers"] for name, found in named.items() if found["peers"]} == {
        "gdpa-X1024-beside-a.b.c": ["a.b:c"],
        "gdpa-X1024-beside-d.e": ["d:e"],
        "rms_norm-norm-295k-x-512-beside-f.g": ["f:g"],
    }
    without = plan("cuda", stages=["bench"])
    assert [task for task in tasks if not task.arguments["peers"]] == without, "the others are what they were"


@pytest.mark.parametrize("peer", ["a.b:c", "nothing=a.b:c", "gdpa=a.b"])
def test_a_peer_of_no_op_is_refused(peer: str) -> None:
    with pytest.raises(BadInput, match=r"allowed: op=package\.module:function with an op of gdpa"):
        plan("cuda", peers=[peer])


def test_a_ladder_of_sizes_needs_a_log_and_comes_after_the_claim() -> None:
    (task,) = (task for task in plan("cuda", data=LOG) if task.stage == "scale")
    assert task.name.startswith("interformer-kunlun-on-kuairand-") and task.arguments["data"] == LOG
    (other,) = plan("cuda", stages=["scale"], data=f"{LOG} of others")
    assert task.name != other.name and task.arguments["folder"] != other.arguments["folder"]
    begun = [task.stage for task in plan("cuda", data=LOG)]
    assert begun.index("scale") == begun.index("road") + 1
    assert "scale" not in {task.stage for task in plan("cuda")}
    (task,) = plan("cpu", stages=["scale"], models=["kunlun", "dlrm"], sizes=["base", "tiny", "large_plus"], data=LOG)
    assert task.arguments["models"] == ["kunlun", "dlrm"] and task.arguments["sizes"] == ["base", "tiny"]


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({"data": LOG, "sizes": ["tiny"]}, "2 sizes or more that interformer, kunlun have"),
        ({"data": LOG, "stages": ["profile"]}, "is for --stage scale, which is left out"),
        ({"stages": ["scale"]}, "nothing is left of --stage scale; scale needs --data"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(choice: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        plan("cpu", **choice)
