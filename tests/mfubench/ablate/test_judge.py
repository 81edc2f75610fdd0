"""A measured change beside a published one: sign, size, and what is not judged."""

from math import expm1, log1p

import pytest

from mfu_models.kunlun.published import Published
from mfubench.ablate.judge import judge, signs
from mfubench.comparison import Estimate

UP = Published("+window", "samples_per_s", 0.30, "+30 % QPS", "somebody")
DOWN = Published("+window", "model_flops_per_sample", -0.30, "-30 % FLOPs", "somebody")


@pytest.mark.parametrize(
    ("published", "measured", "sign", "size"),
    [
        (UP, (0.25, 0.20, 0.32), "agrees", "within the interval"),
        (UP, (0.20, 0.15, 0.25), "agrees", "within a factor of 2"),
        (UP, (0.50, 0.45, 0.55), "agrees", "within a factor of 2"),
        (UP, (0.05, 0.04, 0.06), "agrees", "smaller"),
        (UP, (0.90, 0.80, 1.00), "agrees", "larger"),
        (UP, (-0.10, -0.20, -0.05), "disagrees", None),
        (UP, (0.10, -0.05, 0.25), "undecided", None),
        (UP, (0.30, -0.05, 0.65), "undecided", None),
        (UP, (0.0, 0.0, 0.0), "undecided", None),
        (DOWN, (-0.25, -0.25, -0.25), "agrees", "within a factor of 2"),
        (DOWN, (-0.30, -0.30, -0.30), "agrees", "within the interval"),
        (DOWN, (-0.05, -0.06, -0.04), "agrees", "smaller"),
        (DOWN, (0.10, 0.05, 0.15), "disagrees", None),
    ],
)
def test_sign_and_size(published: Published, measured: tuple[float, float, float], sign: str, size: str | None) -> None:
    found = judge(published, "road", Estimate(*measured))
    assert (found.sign, found.size, found.reason) == (sign, size, "")
    assert found.measured == Estimate(*measured) and found.printed == published.printed


@pytest.mark.parametrize("power", [0.51, 1.99, 0.49, 2.01])
def test_a_factor_of_two_is_one_of_logarithms(power: float) -> None:
    """So that a change and its reverse are judged alike: half of +100 % is +41 %, and of -50 % it is -29 %."""
    for change in (1.0, -0.5):
        published = Published("+window", "samples_per_s", change, "", "")
        value = expm1(power * log1p(change))
        within = judge(published, "road", Estimate(value, value, value)).size == "within a factor of 2"
        assert within == (0.5 <= power <= 2)


def test_what_only_has_a_sign_is_not_judged_by_size() -> None:
    published = Published("+hsp", "mfu", -0.07, "-7 %", "a note", no_size="percent or points")
    found = judge(published, "road", Estimate(-0.07, -0.08, -0.06))
    assert (found.sign, found.size, found.reason) == ("agrees", None, "percent or points")


def test_what_does_not_compare_is_not_judged_at_all() -> None:
    published = Published("+experts", "samples_per_s", 0.04, "+4 %", "", not_comparable="on several GPUs")
    found = judge(published, "road", Estimate(0.04, 0.03, 0.05))
    assert (found.sign, found.size, found.reason) == (None, None, "on several GPUs")
    lost = judge(UP, "road", None, "out of memory")
    assert (lost.sign, lost.measured, lost.reason) == (None, None, "out of memory")


def test_signs_are_counted() -> None:
    found = [judge(UP, "road", Estimate(v, v - 0.1, v + 0.1)) for v in (0.3, 0.4, -0.3, 0.05)]
    assert signs([*found, judge(UP, "road", None, "lost")]) == {"agrees": 2, "disagrees": 1, "undecided": 1}
