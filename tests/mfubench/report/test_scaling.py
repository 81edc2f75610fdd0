"""The page of a ladder of sizes: slopes and their ratios, the points behind them, and what is not known."""

import io
import json
import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from rich.console import Console

from mfubench.report import html, markdown, terminal, write_page
from mfubench.report.blocks import Chart, Facts, Page, Section, Table
from mfubench.report.charts import svg, why_not
from mfubench.report.format import GROUP
from mfubench.report.scaling import scaling_page
from mfubench.report.specs import MORE_SERIES, PALETTE, SERIES
from tests.mfubench.report.page import Document
from tests.mfubench.report.scaling_factory import (
    FOUR,
    LAWS,
    SIZES,
    a_fit,
    a_hostile_ladder,
    a_ladder,
    a_long_ladder,
    a_point,
    an_absent_point,
    no_fit,
    nothing_done,
    some_fits,
)

drawn = pytest.mark.skipif(bool(why_not()), reason=f"draws charts: {why_not()}")
TAG = "{http://www.w3.org/2000/svg}"


def on_terminal(page: Page, width: int = 160, full: bool = True) -> str:
    stream = io.StringIO()
    terminal.print_page(page, Console(file=stream, width=width, emoji=False), full=full)
    return stream.getvalue()


def section(page: Page, title: str) -> Section:
    return next(each for each in page.sections if each.title == title)


def charts(page: Page) -> list[Chart]:
    return [block for block in section(page, "Scaling").blocks if isinstance(block, Chart)]


def table(page: Page, title: str) -> Table:
    return next(block for block in section(page, title).blocks if isinstance(block, Table))


def facts(page: Page, title: str) -> dict[str, str]:
    pairs = [pair for block in section(page, title).blocks if isinstance(block, Facts) for pair in block.pairs]
    return {key: given.replace(GROUP, "") for key, given in pairs}


def column(given: Table, header: str) -> list[str]:
    at = [each.header for each in given.columns].index(header)
    return [row[at] for row in given.rows]


OUTPUTS: dict[str, Callable[[Page], str]] = {
    "terminal": on_terminal,
    "markdown": markdown.render_page,
    "html": html.render_page,
}
LADDERS = {
    "whole": a_ladder,
    "of nothing done": nothing_done,
    "of many": a_long_ladder,
    "hostile": a_hostile_ladder,
    "asked for nothing": lambda: a_ladder(points=[], fits=[], predictors={}),
}


def test_the_headline_is_the_ratio_of_slopes():
    assert scaling_page(a_ladder()).headline == (
        "kunlun gains 2.1 [1.4, 3.0] times as much NE from compute as interformer (kuairand, 4 sizes each, by model "
        "FLOPs)"
    )


FIRST = a_fit("interformer", efficiency=[1.0, 1.0, 1.0])
UNDECIDED = [0.001, -0.002, 0.004]
WHY = "the baseline's eta has an interval that is not above 0"


@pytest.mark.parametrize(
    ("fits", "headline"),
    [
        (
            [FIRST, a_fit(efficiency=[1.2, 0.8, 1.9], points=3), no_fit("hstu")],
            "kunlun gains 1.2 [0.8, 1.9] times as much NE from compute as interformer (undecided, 1 is inside) "
            "(kuairand, 3 to 4 sizes each, by model FLOPs); 1 cannot be held against it",
        ),
        (
            [FIRST, *(a_fit(name) for name in "abcde")],
            "a gains 2.1 [1.4, 3.0] times as much NE from compute as interformer, b 2.1 [1.4, 3.0], c 2.1 [1.4, 3.0], "
            "and 2 more (kuairand",
        ),
        (
            [FIRST, *(no_fit(name, why_not=WHY) for name in "abcd"), no_fit("e", why_not="")],
            f"On kuairand no gain from compute can be held against interformer's; a, b, c, and 1 more: {WHY}; "
            "e: no slope was fitted",
        ),
        ([FIRST], "interformer's NE falls by 0.0071 [0.0051, 0.0091] with ten times the model FLOPs"),
        (
            [a_fit("interformer", per_decade=UNDECIDED)],
            "interformer's NE falls by 0.0010 [-0.0020, 0.0040] with ten times the model FLOPs (undecided, 0 is",
        ),
        (
            [a_fit("interformer", per_decade=[-0.01, -0.02, -0.005])],
            "interformer's NE rises by 0.010 [0.005, 0.020] with ten times the model FLOPs",
        ),
        (
            [a_fit("interformer", per_decade=[0.01] * 3)],
            "interformer's NE falls by 0.010 with ten times the model FLOPs",
        ),
        ([no_fit("interformer")], "interformer n/a (2 sizes, 3 are needed)"),
        ([], "No model has a slope on kuairand: no slope was fitted"),
        ([a_fit("kunlun", "device_time")], "No model has a slope on kuairand: no slope was fitted"),
    ],
)
def test_what_cannot_be_said_has_its_reason_in_the_headline(fits, headline):
    assert scaling_page(a_ladder(fits=fits)).headline.startswith(headline)


def test_a_gain_that_nothing_checks_says_so():
    told = a_ladder(fits=[a_fit("interformer", points=2)])
    told["settings"]["seeds"] = 1
    assert scaling_page(told).headline.endswith("model FLOPs (by 2 sizes and one seed, which nothing checks)")


def test_a_ladder_that_is_not_whole_says_so():
    points = [a_point("kunlun", size) for size in FOUR[:3]] + [an_absent_point()]
    told = a_ladder(*points, complete=False, not_done={"kunlun large seed 0": "the budget ended before it"})
    page = scaling_page(told)
    assert page.headline.endswith("by model FLOPs); 3 of 4 sizes trained; not complete")
    assert column(table(page, "Points"), "status") == ["done"] * 3 + ["not reached"]
    assert facts(page, "Not done") == {"kunlun large seed 0": "the budget ended before it"}


def test_a_reason_that_only_a_point_knows_is_told():
    points = [an_absent_point(size="small", reason="4 GiB asked for"), an_absent_point(size="smaller", reason=None)]
    page = scaling_page(a_ladder(*points, not_done={"kunlun smaller": "the budget ended"}))
    assert facts(page, "Not done") == {"kunlun smaller": "the budget ended", "kunlun small": "4 GiB asked for"}


def test_nothing_done_is_a_page_too():
    page = scaling_page(nothing_done())
    assert page.headline == "No size of any model was trained on kuairand; not complete"
    assert not charts(page) and "Every seed" not in {each.title for each in page.sections}
    assert len(facts(page, "Not done")) == 8
    assert facts(page, "What it ran on")["Training window"] == (
        "n/a impressions of n/a users, a rate of n/a, fingerprint n/a"
    )


def test_fits_have_both_axes_with_slope_ratio_and_reason():
    fits = [a_fit("kunlun", "device_time"), *some_fits()[:2], no_fit("hstu")]
    shown = table(scaling_page(a_ladder(fits=fits)), "Scaling")
    assert column(shown, "compute") == ["model FLOPs"] * 3 + ["device time x peak"]
    ratio = "2.13 [1.42, 3.04]"
    assert column(shown, "efficiency, times interformer's") == ["baseline", ratio, "n/a", ratio]
    assert column(shown, "NE gained by ten times the compute")[:3] == [
        "0.00714 [0.00514, 0.00914]",
        "0.0147 [0.0127, 0.0167]",
        "n/a",
    ]
    assert column(shown, "why not") == ["", "", "2 sizes, 3 are needed", ""]
    laws = table(scaling_page(a_ladder(fits=fits)), "The laws that were fitted")
    assert column(laws, "eta")[1] == "0.00640 [0.00540, 0.00740]" and column(laws, "c0, a sample")[2] == "n/a"


def test_columns_that_say_nothing_are_left_out():
    points = [a_point(size=size, mfu_of_measured_peak=None, samples_per_s=None) for size in FOUR]
    page = scaling_page(a_ladder(*points))
    headers = {each.header for title in ("Scaling", "Points") for each in table(page, title).columns}
    assert not headers & {"why not", "status", "samples/s", "MFU of measured peak %"}


def test_points_stand_beside_the_predictors_that_they_must_beat():
    page = scaling_page(a_ladder())
    told = facts(page, "Points")
    assert told["NE of the item mean"] == "0.9620: each item's rate in the training window"
    assert told["Sizes below all of these"] == "7 of 8, with the whole of their interval"
    shown = table(page, "Points")
    assert column(shown, "model MFLOP a sample")[:2] == ["1.20", "5.10"]
    assert column(shown, "NE [95 % CI]")[0] == "0.9514 [0.9474, 0.9554]"
    assert facts(scaling_page(a_ladder(predictors={"a_new_one": None})), "Points") == {"NE of the a new one": "n/a"}


def test_an_interval_that_is_not_known_is_left_out():
    page = scaling_page(a_ladder(*[a_point(ne=given) for given in ([0.93] * 3, [0.93, None, None], None, [None] * 3)]))
    assert column(table(page, "Points"), "NE [95 % CI]") == ["0.9300", "0.9300", "n/a", "n/a"]
    assert [size.low for curve in charts(page)[0].figure.curves for size in curve.sizes] == [0.93, 0.93]
    assert facts(page, "Points")["Sizes below all of these"].startswith("0 of 4")


def test_every_seed_is_listed_in_full():
    shown = table(scaling_page(a_ladder(a_point())), "Every seed")
    assert column(shown, "seed") == ["0", "1"] and column(shown, "NE") == ["0.9463", "0.9473"]
    assert "Every seed" not in on_terminal(scaling_page(a_ladder()), full=False)


def test_what_is_published_is_marked_and_has_its_source():
    text = on_terminal(scaling_page(a_ladder()), width=400)
    assert "nothing here was measured by this command" in text
    for words in ("2 times InterFormer's", "arXiv 2602.10016; second-hand", "about 0.1 % lower", "arXiv 2403.02545"):
        assert words in text
    assert "2602.10016" not in on_terminal(scaling_page(a_ladder()), full=False)


def test_charts_are_of_model_flops_and_of_device_time_where_it_is_known():
    by_flops, by_time = charts(scaling_page(a_ladder()))
    assert by_flops.figure.of_compute == "model FLOPs a sample" and "peak" in by_time.figure.of_compute
    assert [size.compute for size in by_flops.figure.curves[0].sizes] == [SIZES[size] for size in FOUR]
    assert "kunlun: NE falls by 0.015 [0.013, 0.017] with ten times the compute" in by_flops.summary
    points = [a_point(size=size, peak_seconds_per_sample=None) for size in FOUR]
    assert [each.title for each in charts(scaling_page(a_ladder(*points)))] == ["NE by model FLOPs"]


def test_a_line_is_its_law_and_ends_with_its_sizes():
    """Factory points lie on their laws, so the ends are the points themselves."""
    for chart in charts(scaling_page(a_ladder())):
        for curve in chart.figure.curves:
            first, *_, last = curve.sizes
            assert curve.line == [
                (first.compute, pytest.approx(first.value)),
                (last.compute, pytest.approx(last.value)),
            ]


def test_one_size_has_a_point_and_no_line():
    page = scaling_page(a_ladder(a_point(), fits=[no_fit(), no_fit("interformer")]))
    (curve,) = charts(page)[0].figure.curves
    assert len(curve.sizes) == 1 and curve.line == []
    assert "Lines are" not in charts(page)[0].summary and "Dashed" in charts(page)[0].summary


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, 0.0])
def test_a_point_without_a_place_on_the_axis_is_not_drawn(bad):
    page = scaling_page(a_ladder(a_point(flops_per_sample=bad, peak_seconds_per_sample=bad)))
    assert not charts(page) and len(table(page, "Points").rows) == 1
    Document(html.render_page(page))


@drawn
@pytest.mark.parametrize("ladder", LADDERS)
def test_charts_are_drawn_with_title_and_description(ladder):
    for chart in charts(scaling_page(LADDERS[ladder]())):
        element = ElementTree.fromstring(svg(chart, "here"))
        found = {each.get("id"): each.text for each in element if each.get("id")}
        assert found == {"here-title": chart.title, "here-about": chart.summary}
        marks = [each.text for each in element.iter(f"{TAG}title") if ": NE 0." in (each.text or "")]
        assert len(marks) == sum(len(curve.sizes) for curve in chart.figure.curves)


@drawn
def test_models_differ_in_shape_as_well_as_in_colour():
    """And each mark says which model's it is."""
    (chart,) = charts(scaling_page(a_long_ladder()))
    element = ElementTree.fromstring(svg(chart, "here"))
    looks: dict[str, set[tuple[str, str]]] = {}
    for path in element.iter(f"{TAG}path"):
        model, _, said = (path.findtext(f"{TAG}title") or "").partition(" ")
        if re.match(r"\w+: NE 0\.", said):
            looks.setdefault(model, set()).add((path.get("d", ""), path.get("fill", "")))
    assert looks.keys() == LAWS.keys() and all(len(each) == 1 for each in looks.values())
    assert len({shape for each in looks.values() for shape, _ in each}) == len(LAWS)
    assert len({hue for each in looks.values() for _, hue in each}) == len(LAWS)


def test_looks_of_series_are_all_different():
    looks = [*SERIES, *MORE_SERIES]
    assert len({hue for hue, _ in looks}) == len({shape for _, shape in looks}) == len(looks)
    assert {hue for hue, _ in looks} <= PALETTE.keys()


@drawn
def test_of_very_many_models_no_two_look_alike():
    points = [a_point(f"m{at}", "tiny", ne=[0.9 + at / 1000] * 3) for at in range(30)]
    (chart, _) = charts(scaling_page(a_ladder(*points)))
    element = ElementTree.fromstring(svg(chart, "here"))
    marks = [path for path in element.iter(f"{TAG}path") if re.match(r"m\d+ tiny", path.findtext(f"{TAG}title") or "")]
    assert len({(path.get("d"), path.get("fill")) for path in marks}) == len(marks) == 30


@drawn
def test_predictors_are_lines_with_names_or_named_at_the_edge():
    near, far = (
        svg(charts(scaling_page(a_ladder(predictors=given)))[0], "here")
        for given in ({"item_mean": 0.962, "running_user_mean": 0.955}, {"item_mean": 1.9, "running_user_mean": 0.1})
    )
    assert "item mean 0.9620<" in near and "running user mean 0.9550<" in near and "↑" not in near
    assert "↑ item mean 1.900<" in far and "↓ running user mean 0.1000<" in far


@pytest.mark.parametrize("ladder", LADDERS)
def test_a_page_of_any_kind_is_whole_in_every_output(ladder, tmp_path):
    page = scaling_page(LADDERS[ladder]())
    brief = on_terminal(page, width=80, full=False)
    assert max(map(len, brief.splitlines())) <= 80 and "None" not in brief
    write_page(page, tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    Document(text)
    assert len(text) < 10**6 and "nan" not in text.partition("<main>")[2]


def test_a_long_ladder_is_folded_and_nothing_of_it_is_lost():
    page = scaling_page(a_long_ladder())
    assert "5 more sizes" in html.render_page(page) and "35 more trainings" in html.render_page(page)
    assert "10 more sizes; scaling.json lists them all." in markdown.render_page(page)


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_it_ran_on_is_in_the_full_view(output):
    text = OUTPUTS[output](scaling_page(a_ladder())).replace("\\", "").replace(GROUP, "")
    for fact in (
        *("kuairand:/data/KuaiRand-1K", "is_click", "20000 impressions of 950 users, a rate of 37.2 %, fingerprint"),
        *("NVIDIA H100", "batch size", "in one pass", "Made by: mfubench scale --models", "the sizes span 1.9 decades"),
    ):
        assert fact in text
    assert "KuaiRand-1K" not in on_terminal(scaling_page(a_ladder()), full=False)


def test_names_are_text_in_every_output(tmp_path):
    page = scaling_page(a_hostile_ladder())
    assert "\n" not in page.headline and "\n" not in page.title
    write_page(page, tmp_path)
    told = Document((tmp_path / "report.html").read_text("utf-8"))
    assert told.text.count("<i>c</i> `d`") > 8 and "i" not in {tag for tag, _ in told.tags}
    assert r"a\|b \<i\>c\</i\> \`d\`" in (tmp_path / "report.md").read_text("utf-8")
    assert "\x1b" not in on_terminal(page)
    if not why_not():
        assert "&lt;i&gt;c" in (tmp_path / "report-1.svg").read_text("utf-8")


def test_a_document_read_back_from_its_file_gives_the_same_page():
    told = a_ladder()
    assert scaling_page(json.loads(json.dumps(told))) == scaling_page(told)
