"""The numbers of an ablation's charts are those of its tables."""

from dataclasses import replace
from typing import Any

import pytest

from mfubench.ablate.document import Ablation
from mfubench.ablate.figures import published, utilisation
from mfubench.ablate.ladder import Ladder
from mfubench.comparison import Estimate
from mfubench.workload.spec import WorkloadSpec


@pytest.fixture
def ablation(machine: Any) -> Ablation:
    ladder = Ladder(WorkloadSpec("kunlun", size="tiny", device="cpu", steps=3))
    ladder.climb()
    return ladder.ablation()


def test_utilisation_is_that_of_the_road(ablation: Ablation) -> None:
    figure = utilisation(ablation)
    assert figure is not None and "measured" in figure.title and not figure.ratios
    road = [step for step in ablation.steps if step.kind == "road"]
    assert figure.rows == [step.name for step in road]
    for dot, step in zip(figure.dots, road, strict=True):
        assert step.row is not None
        assert Estimate(dot.value, dot.low, dot.high) == step.row.mfu_of_measured_peak


def test_utilisation_is_against_the_datasheet_where_there_is_one(ablation: Ablation) -> None:
    mfu = Estimate(0.3, 0.2, 0.4)
    steps = [replace(step, row=step.row and replace(step.row, mfu=mfu)) for step in ablation.steps]
    figure = utilisation(replace(ablation, steps=steps))
    assert figure is not None and "datasheet" in figure.title and {dot.value for dot in figure.dots} == {0.3}


def test_published_changes_have_what_was_measured_beside_them(ablation: Ablation) -> None:
    figure = published(ablation)
    assert figure is not None and figure.ratios
    assert figure.series == ["published", "on the road", "in the full model"]
    found = {(dot.row, dot.series): dot for dot in figure.dots}
    window = "+window FLOPs a sample"
    assert found[window, "published"].value == pytest.approx(0.705)
    change = ablation.change("road", "+window")
    assert change is not None
    assert found[window, "on the road"].value == 1 + change.relative["model_flops_per_sample"].value
    assert not [row for row in figure.rows if "+experts" in row or "interformer" in row]  # which do not compare so


def test_nothing_measured_makes_no_chart(machine: Any) -> None:
    empty = Ladder(WorkloadSpec("kunlun", size="tiny", device="cpu")).ablation()
    assert utilisation(empty) is None and published(empty) is None


def test_charts_are_drawn_with_every_dot_and_its_interval(ablation: Ablation) -> None:
    pytest.importorskip("altair")
    from mfubench.report.specs import spec

    for figure in (utilisation(ablation), published(ablation)):
        assert figure is not None
        layers = spec(figure)["layer"]
        for layer in layers[-2:]:
            drawn = layer["data"]["values"]
            assert [(row["row"], row["value"], row["low"], row["high"]) for row in drawn] == [
                (dot.row, dot.value, dot.low, dot.high) for dot in figure.dots
            ]
        assert len(layers) == 2 + figure.ratios
