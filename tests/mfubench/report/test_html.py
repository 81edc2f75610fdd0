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


def cells(text: str) -> list[tuple[str, str]]:
    """Every cell below a table's head: its column's header, and the markup in it."""
    found = []
    for table in re.findall(r"<table>.*?</table>", text, re.S):
        head, _, rest = table.partition("</thead>")
        headers = re.findall(r"<th [^>]*>(.*?)</th>", head)
        for row in re.findall(r"<tr>(.*?)</tr>", rest, re.S):
            found += zip(headers, re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", row, re.S), strict=True)
    return found


def test_bars_are_drawn_for_shares_only():
    """Each as long as its share; one below zero, or unknown, has none."""
    run = a_run()
    run.ledger[0].share = -0.05
    texts = cells(html.render_page(page_of([run])))
    shares = [text for header, text in texts if header == "share %"]
    drawn = [re.findall(r'<rect width="([^"]*)"', text) for text in shares]
    written = [text.partition("<")[0].strip() for text in shares]
    assert drawn == [[share] if share[0].isdigit() else [] for share in written]
    assert [] in drawn and len(drawn) > len(run.ledger) + len(run.modules)
    assert {"MFU %", "ms", "left %"} <= {header for header, _ in texts}
    assert not [header for header, text in texts if header != "share %" and ("<svg" in text or "<rect" in text)]


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
