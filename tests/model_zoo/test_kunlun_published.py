"""What is published of the road's steps: signs as printed, and the arithmetic of what contradicts itself."""

import re

import pytest

from mfu_models.kunlun.published import CONTRADICTIONS, PUBLISHED, WHOLE, Published
from mfu_models.kunlun.road import STEPS

ONE = {(each.step, each.metric, each.printed): each for each in PUBLISHED}
each_published = pytest.mark.parametrize("published", PUBLISHED, ids=map("-".join, ONE))


def change(step: str, metric: str) -> float:
    (found,) = {each.change for each in PUBLISHED if (each.step, each.metric) == (step, metric)}
    return found


@each_published
def test_it_is_of_a_step_and_has_a_source(published: Published) -> None:
    assert published.step in {*STEPS, WHOLE}
    assert published.source and published.printed and published.change > -1 and published.change != 0


@each_published
def test_the_change_is_the_printed_number(published: Published) -> None:
    """As it stands, turned round where it is without the switch over with it, or from one percentage to another."""
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?= %)", published.printed)]
    ratio = numbers[1] / numbers[0] if len(numbers) == 2 else 1 + numbers[0] / 100
    if "without it" in published.printed:
        ratio = 1 / ratio
    assert published.change == pytest.approx(ratio - 1, abs=1e-9)


def test_nothing_is_there_twice() -> None:
    assert len(ONE) == len(PUBLISHED)


def test_sources_that_contradict_each_other_both_stand() -> None:
    hsp = [each for each in PUBLISHED if each.step == "+hsp" and each.metric == "samples_per_s"]
    assert {each.change > 0 for each in hsp} == {True, False} and len({each.source for each in hsp}) == 2
    assert any("8.8 %" in sentence for sentence in CONTRADICTIONS)


@pytest.mark.parametrize("step", ["+window", "+comp_skip"])
def test_published_mfu_does_not_follow_from_published_qps_and_flops(step: str) -> None:
    """MFU is QPS x FLOPs a sample / peak; neither percent nor points (of the 37 % reached) fits what is printed."""
    follows = (1 + change(step, "samples_per_s")) * (1 + change(step, "model_flops_per_sample")) - 1
    printed = change(step, "mfu")
    in_points = 0.37 / (0.37 - printed) - 1
    assert abs(follows - printed) > 0.02 and abs(follows - in_points) > 0.02
    assert any(f"makes {100 * follows:.2g} %" in sentence for sentence in CONTRADICTIONS)


def test_published_mfu_of_gdpa_follows_from_its_qps_if_flops_hardly_change() -> None:
    assert change("+gdpa", "mfu") == pytest.approx(change("+gdpa", "samples_per_s"), abs=0.002)
