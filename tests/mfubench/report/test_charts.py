"""Charts stand in the page without a script or a network, say what they show, and a page without them says why."""

import re
import socket
import sys
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from mfubench.attribute.roofline import VERDICTS as KNOWN_VERDICTS
from mfubench.figures import Dot, Dots, Figure, roofline, stacks, waterfall
from mfubench.report import html, markdown, write_reports
from mfubench.report.blocks import Chart, Column, Items, Page, Section, Table
from mfubench.report.causes import MEANING
from mfubench.report.charts import INK, PAPER, svg, why_not
from mfubench.report.comparison import page as page_of
from mfubench.report.scaling import scaling_page
from mfubench.report.specs import FAMILIES, OTHER_FAMILY, OTHER_VERDICT, PALETTE, VERDICTS
from mfubench.run import CAUSE_FAMILIES
from tests.mfubench.report.factory import a_gpu_run, a_module, a_run
from tests.mfubench.report.page import Document, contrast, palettes
from tests.mfubench.report.scaling_factory import a_ladder

drawn = pytest.mark.skipif(bool(why_not()), reason=f"draws charts: {why_not()}")
FIGURES: dict[str, Figure] = {
    "waterfall": waterfall(a_run()),
    "roofline": roofline(a_gpu_run()),
    "stacks": stacks([a_run(), a_gpu_run()]),
    "curves": scaling_page(a_ladder()).sections[0].blocks[0].figure,
}
TAG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", params=FIGURES)
def chart(request):
    """One figure of each kind as an element, parsed."""
    return ElementTree.fromstring(svg(Chart("A <title>", "What & why.", FIGURES[request.param]), "here"))


@drawn
def test_a_chart_has_a_title_and_a_description_that_are_read_out(chart):
    assert chart.get("role") == "img" and chart.get("aria-labelledby") == "here-title here-about"
    found = {element.get("id"): element.text for element in chart if element.get("id")}
    assert found == {"here-title": "A <title>", "here-about": "What & why."}


@drawn
def test_every_mark_says_what_it_is_when_pointed_at(chart):
    titles = [element.text for element in chart.iter(f"{TAG}title") if not element.get("id")]
    assert len(titles) > 5 and all(re.search(" ms|%|GB/s|NE | mean", title) for title in titles)


@drawn
def test_the_ticks_of_small_shares_differ():
    dots = [Dot("a", "MFU", 0.004, 0.003, 0.005, "a: MFU 0.4 %"), Dot("b", "MFU", 0.006, 0.005, 0.007, "b: MFU 0.6 %")]
    root = ElementTree.fromstring(svg(Chart("MFU", "Small.", Dots("MFU", dots, ratios=False)), "here"))
    ticks = [element.text for element in root.iter(f"{TAG}text") if element.text and element.text.endswith("%")]
    assert len(ticks) > 3 and len(set(ticks)) == len(ticks)


@drawn
def test_a_chart_refers_to_nothing_and_runs_nothing(chart):
    text = ElementTree.tostring(chart, encoding="unicode")
    assert not re.search(r"href|url\(|<script|\bon\w+=|<image|<foreignObject|<style", text)
    ids = Counter(element.get("id") for element in chart.iter() if element.get("id"))
    assert max(ids.values()) == 1


@drawn
def test_colours_follow_the_page_and_keep_a_value_of_their_own(chart):
    """var(--name, value): the value is what a page without its style sheet, or a viewer of SVG, shows."""
    colors = {element.get(key) for element in chart.iter() for key in ("fill", "stroke") if element.get(key)}
    literal = {color for color in colors if not re.fullmatch(r"var\(--[\w-]+, #\w{6}\)|currentColor|none", color)}
    assert not literal
    assert any(color.startswith("var(--chart-") for color in colors)


@drawn
def test_nothing_is_asked_of_a_network(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert svg(Chart("t", "s", FIGURES["waterfall"]), "x").startswith("<svg")


@drawn
def test_a_waterfall_has_a_bar_for_every_line_and_its_two_ends():
    text = svg(Chart("t", "s", FIGURES["waterfall"]), "x")
    for line in a_run().ledger:
        assert f">{line.cause}<" in text or line.cause == "useful"
    for words in ("the step", "useful = MFU", "100 %", "33.2 %", "−10.1 %", "&lt; 0.1 %"):
        assert f">{words}<" in text


@drawn
def test_a_verdict_has_a_shape_as_well_as_a_colour():
    """Marks of two verdicts differ in their path, not only in their fill."""
    rows = [a_module(name, verdict=name, intensity=10.0 * at) for at, name in enumerate(VERDICTS, 1)]
    element = ElementTree.fromstring(svg(Chart("t", "s", roofline(a_run(modules=rows))), "x"))
    titled = {path: path.findtext(f"{TAG}title") for path in element.iter(f"{TAG}path")}
    marks = [path for path, title in titled.items() if title and "of the step" in title]
    assert len(marks) == len({path.get("fill") for path in marks}) == len({path.get("d") for path in marks})
    assert len(marks) == len(VERDICTS)


def test_every_verdict_and_family_has_a_look():
    assert set(KNOWN_VERDICTS.values()) <= VERDICTS.keys()
    assert FAMILIES.keys() <= set(CAUSE_FAMILIES) == MEANING.keys()
    looks = [*VERDICTS.values(), OTHER_VERDICT]
    assert len(set(looks)) == len({hue for hue, _ in looks}) == len({shape for _, shape in looks}) == len(looks)
    assert {*FAMILIES.values(), OTHER_FAMILY, *(hue for hue, _ in looks)} <= PALETTE.keys()
    assert len(set(FAMILIES.values())) == len(FAMILIES)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_palette_of_charts_hascontrast(scheme):
    """With the page, also for the names that stand in a segment in the page's colour (WCAG 2, 1.4.3 and 1.4.11)."""
    palette = palettes(html.render_page(page_of([a_run()])))[scheme]
    assert {name.removeprefix("chart-") for name in palette if name.startswith("chart-")} == PALETTE.keys()
    assert all(contrast(palette[f"chart-{name}"], palette["page"]) >= 4.5 for name in PALETTE)


def test_the_values_behind_the_variables_are_the_light_page_s():
    light = palettes(html.render_page(page_of([a_run()])))["light"]
    assert {name: light[f"chart-{name}"] for name in PALETTE} == PALETTE


@drawn
def test_the_page_of_a_run_has_its_charts_and_ids_that_do_not_collide():
    page = Document(html.render_page(page_of([a_run(), a_gpu_run()])))
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(charts) == 1 + 2 * 2
    assert max(Counter(page.attributes("id")).values()) == 1


@drawn
def test_a_large_run_stays_below_a_megabyte(tmp_path):
    rows = [a_module(f"a_tower.{at}.with.a.long.name.of.its.own", time_ms=1.0 / (at + 1)) for at in range(1000)]
    write_reports([a_run(modules=rows)], tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 1e6
    assert "The last 600 modules are in run.json alone." in (tmp_path / "report.html").read_text()


def test_a_long_table_says_where_the_rest_of_it_is():
    table = replace(Table.of("Long.", [(Column("n"), list("ab") * 300)], rest="sizes"), listed_in="scaling.json")
    page = html.render_page(Page("A page", "of one table", [], [Section("All", [table])]))
    assert "575 more sizes" in page and "The last 200 sizes are in scaling.json alone." in page
    table = Table.of("Long.", [(Column("n"), ["a"] * 26)], rest="sizes")
    assert "1 more size<" in html.render_page(Page("A page", "of one table", [], [Section("All", [table])]))


def test_a_module_without_an_attainable_time_is_not_drawn():
    rows = [a_module("a"), a_module("b", attainable_ms=0.0)]
    assert [mark.row.name for mark in roofline(a_run(modules=rows)).marks] == ["a"]


def test_without_what_draws_charts_every_file_is_written_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    write_reports([a_run(), a_run()], tmp_path)
    page = Document((tmp_path / "report.html").read_text())
    assert page.text.count("The charts are not drawn: import of altair halted; None in sys.modules.") == 1
    assert "mfubench report DIR --out DIR" in page.text and "pip install altair vl-convert-python" in page.text
    assert not any(attributes.get("role") == "img" for tag, attributes in page.tags if tag == "svg")
    for words in ("From 100 % of the median step down to 33.2 %", "peak_gap"):  # what they show, and the tables
        assert words in page.text
    assert (tmp_path / "report.md").read_text() == markdown.render_page(page_of([a_run(), a_run()]))


def test_a_page_without_charts_misses_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    assert "not drawn" not in html.render_page(Page("t", "h", [], [Section("s", [Items(["words"])])]))


def test_markdown_says_what_charts_show():
    text = markdown.render_page(page_of([a_run()]))
    assert "*MFU waterfall*: From 100 %" in text and "![" not in text
    assert "*Roofline of the modules*: The 32 longest of 32 modules" in text


@drawn
def test_markdown_shows_charts_from_files_that_stand_for_themselves(tmp_path):
    write_reports([a_run(), a_gpu_run()], tmp_path)
    shown = re.findall(r"!\[([^]]*)\]\(([^)]*)\)", (tmp_path / "report.md").read_text())
    assert [file for _, file in shown] == [f"report-{at}.svg" for at in range(1, 6)]
    for title, file in shown:
        picture = ElementTree.parse(tmp_path / file).getroot()
        title_element, _, paper = list(picture)[:3]
        assert title_element.text == title.replace("\\", "")
        assert paper.tag == f"{TAG}rect" and paper.get("fill") == PAPER and picture.get("color") == INK
        assert contrast(INK, PAPER) > 10
