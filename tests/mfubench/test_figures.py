"""The numbers of the charts: they are the Run's own, and they add up as its ledger does."""

from itertools import pairwise
from math import log10

import pytest

from mfubench.figures import NUM_LABELLED, NUM_MARKS, Curve, Law, Level, Size, curves, roofline, stacks, waterfall
from mfubench.run import CAUSE_FAMILIES, LedgerLine, family_of, family_place
from tests.mfubench.report.factory import STEP_MS, a_gpu_run, a_module, a_run


def test_the_waterfall_is_the_ledger_from_the_whole_step_down_to_what_is_useful():
    run = a_run()
    fall = waterfall(run)
    assert [drop.line for drop in fall.drops] == [line for line in run.ledger if line.cause != "useful"]
    assert fall.drops[0].before == 1.0
    for above, below in pairwise(fall.drops):
        assert below.before == above.left
    assert all(drop.before - drop.left == pytest.approx(drop.line.share, abs=1e-12) for drop in fall.drops)
    (useful,) = (line for line in run.ledger if line.cause == "useful")
    assert fall.drops[-1].left == fall.useful == pytest.approx(useful.share, abs=1e-12)


def test_a_line_below_zero_lifts_the_waterfall():
    lines = [LedgerLine("useful", 6.0, 0.6, []), LedgerLine("amortized", -1.0, -0.1, [])]
    lines += [LedgerLine("launch", 5.0, 0.5, [])]
    amortized, launch = waterfall(a_run(ledger=lines)).drops
    assert (amortized.left, launch.left) == (pytest.approx(1.1), pytest.approx(0.6))


def test_what_rounding_leaves_is_nothing():
    """A step without any useful work ends at 0, not at so many quadrillionths."""
    shares = (0.1, 0.2, 0.3, 0.4)
    assert 1.0 - sum(shares) == 0 != (((1.0 - 0.1) - 0.2) - 0.3) - 0.4
    fall = waterfall(a_run(ledger=[LedgerLine("launch", share, share, []) for share in shares]))
    assert fall.useful == 0.0 == fall.drops[-1].left


def test_the_largest_drops_are_named_first():
    assert [drop.line.cause for drop in waterfall(a_run()).largest(2)] == ["peak_gap", "inefficiency.attention"]


def test_a_mark_is_what_its_module_reaches_and_could():
    run = a_run(modules=[a_module("a", time_ms=2.0, share=0.5, attainable_ms=0.5)])
    figure = roofline(run)
    (mark,) = figure.marks
    assert (mark.rank, mark.intensity, figure.num_modules, figure.marked_share) == (1, 45.0, 1, 0.5)
    assert mark.flop_s == pytest.approx(360e6 / 2e-3) and mark.attainable_flop_s == pytest.approx(360e6 / 0.5e-3)


def test_only_modules_that_have_flops_and_time_are_marked_and_the_longest_first():
    rows = [a_module(f"m{at}", time_ms=1.0 + at) for at in range(NUM_MARKS + 5)]
    rows += [a_module("norm", intensity=0.0), a_module("phase", intensity=None), a_module("fused", time_ms=0.0)]
    figure = roofline(a_run(modules=rows))
    assert figure.num_modules == NUM_MARKS + 5 and len(figure.marks) == NUM_MARKS
    assert figure.marks[0].row.name == f"m{NUM_MARKS + 4}"
    assert roofline(a_run(modules=rows[-3:])) is None


def test_each_dtype_that_was_used_has_the_roofs_that_are_known():
    """A run that knows only its own peak has that one; a dtype that no operator computed in has none."""
    (only,) = roofline(a_run()).ceilings
    assert (only.basis, only.dtype, only.flop_s, only.gb_s) == ("measured", "fp32", pytest.approx(0.412e12), 21.7)
    seen = {
        (ceiling.dtype, ceiling.basis): (ceiling.flop_s, ceiling.gb_s) for ceiling in roofline(a_gpu_run()).ceilings
    }
    assert seen == {
        ("fp32", "measured"): (pytest.approx(51.4e12), 2911.0),
        ("fp32", "datasheet"): (pytest.approx(66.9e12), 3350.0),
        ("bf16", "measured"): (pytest.approx(712e12), 2911.0),
        ("bf16", "datasheet"): (pytest.approx(989.4e12), 3350.0),
    }


def test_a_roof_rises_with_the_bandwidth_and_ends_at_the_peak():
    (roof,) = roofline(a_run()).ceilings
    assert roof.ridge == pytest.approx(412 / 21.7)
    (x0, y0), (x1, y1), (x2, y2) = roof.corners([0.1, 1000.0], [1e9, 1e12])
    assert (x0, x1, x2) == (0.1, roof.ridge, 1000.0)
    assert (y0, y1, y2) == (pytest.approx(2.17e9), pytest.approx(412e9), pytest.approx(412e9))
    assert len(roof.corners([100.0, 1000.0], [1e9, 1e12])) == 2  # no ridge in sight
    assert roof.corners([0.001, 1000.0], [2.17e9, 1e12])[0] == (pytest.approx(0.1), pytest.approx(2.17e9))


def test_all_that_is_drawn_lies_between_the_decades():
    figure = roofline(a_gpu_run())
    for values, decades in (
        ([mark.intensity for mark in figure.marks] + [roof.ridge for roof in figure.ceilings], figure.intensities),
        ([mark.flop_s for mark in figure.marks] + [roof.flop_s for roof in figure.ceilings], figure.rates),
    ):
        assert all(decades[0] <= value < decades[-1] for value in values)
        assert all(after == pytest.approx(10 * before) for before, after in pairwise(decades))


def test_labels_that_would_cover_each_other_stand_together():
    rows = [a_module(name, time_ms=1.0) for name in "abc"] + [a_module("far", time_ms=0.5, intensity=1.0)]
    labels = roofline(a_run(modules=rows)).labels
    assert [(mark.row.name, ranks) for mark, ranks in labels] == [("a", [1, 2, 3]), ("far", [4])]
    many = roofline(a_run(modules=[a_module(f"m{at}", time_ms=1.0) for at in range(40)]))
    assert sum(len(ranks) for _, ranks in many.labels) == NUM_LABELLED


def test_a_stack_holds_every_family_once_in_order_and_is_as_long_as_the_step():
    (stack,) = stacks([a_run()]).stacks
    families = [segment.family for segment in stack.segments]
    assert families == sorted(set(families), key=CAUSE_FAMILIES.index) and "recompute" not in families  # it is 0
    assert sum(segment.ms for segment in stack.segments) == pytest.approx(STEP_MS)
    for before, after in pairwise(stack.segments):
        assert after.low_ms == before.high_ms or after.ms < 0 or before.ms < 0
    assert all(segment.share == pytest.approx(segment.ms / STEP_MS) for segment in stack.segments)


def test_what_is_below_zero_stacks_to_the_left():
    lines = [
        LedgerLine("useful", 8.0, 0.8, []),
        LedgerLine("amortized", -2.0, -0.2, []),
        LedgerLine("data", 4.0, 0.4, []),
    ]
    (stack,) = stacks([a_run(ledger=lines)]).stacks
    assert [(s.family, s.low_ms, s.high_ms) for s in stack.segments] == [
        ("useful", 0.0, 8.0),
        ("amortized", -2.0, 0.0),
        ("data", 8.0, 12.0),
    ]
    assert (stack.step_ms, stack.right_ms) == (STEP_MS, 12.0)


def test_a_name_fits_into_what_is_wide_beside_the_longest_stack():
    short = a_run(step={"time_ms": {"median": 1.0}}, ledger=[LedgerLine("useful", 1.0, 1.0, [])])
    long = a_run(step={"time_ms": {"median": 10.0}}, ledger=[LedgerLine("useful", 10.0, 1.0, [])])
    assert [stack.segments[0].wide for stack in stacks([short, long]).stacks] == [False, True]


def test_a_cause_of_another_release_comes_last():
    assert family_of("memory_bound.norm") == "memory_bound"
    assert family_place("a_new_cause") > family_place("not_attributed")


def sizes(*places: tuple[float, float], by: float = 0.01) -> list[Size]:
    return [Size(f"s{at}", c, y, y - by, y + by, "") for at, (c, y) in enumerate(places)]


def test_a_law_is_drawn_between_its_smallest_and_its_largest_size():
    """It falls by eta ln 10 for ten times the compute, and says nothing of what lies beyond."""
    law = Law(0.9, 0.01 / 2.302585093, 1e7)
    given = Curve("kunlun", sizes((1e7, 0.91), (1e6, 0.92), (1e8, 0.88)), law, "")
    assert given.line == [(1e6, pytest.approx(0.91)), (1e8, pytest.approx(0.89))]
    assert Curve("kunlun", given.sizes, None, "").line == Curve("kunlun", [], law, "").line == []


def test_curves_lie_within_their_axes_and_levels_too_far_away_beside_them():
    levels = [Level("near", 0.97), Level("far", 2.0), Level("low", 0.1), Level("top", 0.99)]
    figure = curves("NE", "FLOPs", [Curve("a", sizes((1e6, 0.95), (1e8, 0.9)), Law(0.98, 0, 1e6), "")], levels)
    assert [[level.name for level in part] for part in (figure.levels, figure.above, figure.below)] == [
        ["top", "near"],
        ["far"],
        ["low"],
    ]
    assert figure.computes[0] < 1e6 and figure.computes[1] > 1e8
    assert figure.values[0] < 0.89 and figure.values[1] > 0.99
    assert figure.ticks == pytest.approx([1e6, 2e6, 5e6, 1e7, 2e7, 5e7, 1e8])


@pytest.mark.parametrize("place", [(1e6, 0.9), (3.0, 0.0)])
def test_one_size_has_axes_too(place):
    figure = curves("NE", "FLOPs", [Curve("a", sizes(place, by=0.0), None, ""), Curve("none", [], None, "")], [])
    assert figure.values[0] < place[1] < figure.values[1] and figure.computes[0] < place[0] < figure.computes[1]
    assert log10(figure.computes[1] / figure.computes[0]) >= 0.49 and figure.ticks
    assert [curve.series for curve in figure.curves] == ["a"] and len(figure.labels) == 1


def test_no_size_is_no_chart():
    assert curves("NE", "FLOPs", [Curve("a", [], None, "")], [Level("a", 1.0)]) is None


def test_many_decades_have_no_ticks_between():
    figure = curves("NE", "FLOPs", [Curve("a", sizes((1e3, 1.0), (1e9, 0.9)), None, "")], [])
    assert figure.ticks == pytest.approx([10.0**power for power in range(3, 10)])


def test_names_that_would_cover_a_mark_or_each_other_are_left_out():
    apart = curves("NE", "FLOPs", [Curve("a", sizes((1e6, 0.95), (1e7, 0.9)), None, "")], [])
    assert [size.name for size in apart.labels] == ["s0", "s1"]
    same = curves("NE", "FLOPs", [Curve(name, sizes((1e6, 0.95), (1e7, 0.9)), None, "") for name in "ab"], [])
    assert same.labels == []
    long = Size("a name of a length that ends beyond the chart" * 3, 1e7, 0.9, 0.9, 0.9, "")
    beyond = curves("NE", "FLOPs", [Curve("a", [*sizes((1e6, 0.95)), long], None, "")], [])
    assert [size.name for size in beyond.labels] == ["s0"]
