import re
from collections import Counter
from itertools import pairwise

import pytest

from mfubench.report import html
from mfubench.report.comparison import page as page_of
from tests.mfubench.report.factory import a_gpu_run, a_module, a_run
from tests.mfubench.report.page import Document, contrast, palettes

REPORTS = {
    "one run": [a_run()],
    "a GPU run": [a_gpu_run()],
    "several runs": [a_run(), a_gpu_run(), a_run()],
    "an empty run": [a_run(modules=[], ledger=[], hotspots=[], impls={}, not_measured=[], warnings=[])],
}

TEXT_ON = [("text", "page"), ("text", "panel"), ("quiet", "page"), ("link", "page"), ("warn-text", "warn-page")]
MARK_ON = [("mark", "page"), ("mark", "panel"), ("warn-line", "page")]


@pytest.fixture(params=REPORTS)
def page(request) -> Document:
    return Document(html.render_page(page_of(REPORTS[request.param])))


def test_nothing_is_fetched_and_nothing_runs(page):
    assert all(link and link.startswith("#") for link in page.attributes("href"))
    assert not page.attributes("src")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object"}
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "url(" not in page.text and "@import" not in page.text


def test_links_lead_somewhere_and_ids_are_unique(page):
    ids = page.attributes("id")
    assert max(Counter(ids).values()) == 1
    assert {f"#{name}" for name in ids} >= set(page.attributes("href"))


def test_headings_are_in_order(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_say_what_they_are_and_which_cells_are_headers(page):
    tags = Counter(tag for tag, _ in page.tags)
    assert tags["table"] == tags["caption"]
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")


def test_bars_are_drawn_for_shares_only():
    widths = [
        attributes["width"] for tag, attributes in Document(html.render_page(page_of([a_run()]))).tags if tag == "rect"
    ]
    assert "33.2" in widths and "100.0" in widths
    assert all(float(width) >= 0 for width in widths)


def test_a_name_is_never_markup():
    name = "<script>alert('a&b')</script>"
    text = html.render_page(page_of([a_run(modules=[a_module(name)], warnings=[name], workload={"model": name})]))
    assert "<script" not in text
    assert Document(text).text.count(name) >= 4


def test_a_long_table_is_folded_and_nothing_of_it_is_lost():
    names = [f"layer.{at:03}" for at in range(40)]
    page = Document(html.render_page(page_of([a_run(modules=[a_module(name) for name in names])])))
    assert sum(tag == "details" for tag, _ in page.tags) == 2  # their times and their rooflines
    assert "15 more modules" in page.text
    assert all(page.text.count(name) >= 2 for name in names)


def test_a_name_is_folded_at_its_dots_and_a_number_is_not():
    page = html.render_page(
        page_of([a_run(modules=[a_module("towers.clicks.blocks.attention"), a_module("a" * 30 + " 1.121")])])
    )
    assert "<wbr>.attention</th>" in page and "a" * 30 + " 1.121</th>" in page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_palette_has_contrast(scheme):
    palette = palettes(html.render_page(page_of([a_run()])))[scheme]
    assert all(contrast(palette[ink], palette[ground]) >= 4.5 for ink, ground in TEXT_ON)
    assert all(contrast(palette[ink], palette[ground]) >= 3 for ink, ground in MARK_ON)
