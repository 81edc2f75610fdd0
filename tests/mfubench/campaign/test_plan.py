"""What a campaign runs and in which order."""

import pytest

from mfu_models import MODELS
from mfubench.campaign.plan import DEFAULTS, FIRST_PROFILES, STAGES, VARIANTS, plan
from mfubench.errors import BadInput
from mfubench.kernels.catalog import ops_with_kernels
from mfubench.workload.spec import WorkloadSpec


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_stages_come_in_order_of_value_and_nothing_twice(device: str) -> None:
    tasks = plan(device)
    seen = [task.stage for task in tasks]
    assert seen == sorted(seen, key=STAGES.index) and set(seen) == set(STAGES)
    assert len({task.id for task in tasks}) == len(tasks)
    assert [task.name for task in tasks if task.stage == "contract"] == ops_with_kernels()


def test_every_profile_is_a_workload_that_exists() -> None:
    for device in DEFAULTS:
        for task in plan(device):
            if task.stage == "profile":
                chosen = {key: task.arguments[key] for key in ("model", "size", "mode", "impl", "compile")}
                spec = WorkloadSpec(**chosen)
                assert spec.size in MODELS[spec.model].sizes


def test_the_claim_comes_first_on_a_gpu() -> None:
    names = [task.name for task in plan("cuda") if task.stage == "profile"]
    assert names[: len(FIRST_PROFILES)] == ["-".join(place) for place in FIRST_PROFILES]
    assert {place[3] for place in FIRST_PROFILES} <= set(VARIANTS)


def test_choices_narrow_the_plan() -> None:
    tasks = plan("cpu", stages=["profile"], sizes=["tiny"], models=["kunlun"])
    assert [task.name for task in tasks] == ["kunlun-tiny-train-eager", "kunlun-tiny-infer-eager"]
    assert {task.stage for task in plan("cuda", models=["dlrm"])} == set(STAGES) - {"road"}


@pytest.mark.parametrize("choice", [{"stages": ["x"]}, {"models": ["x"]}, {"sizes": ["huge"]}])
def test_unknown_choices_name_what_there_is(choice: dict[str, list[str]]) -> None:
    with pytest.raises(BadInput, match="is unknown; allowed: "):
        plan("cpu", **choice)  # type: ignore[arg-type]
