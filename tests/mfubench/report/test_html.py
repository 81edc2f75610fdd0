import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from mfubench.report import html
from tests.mfubench.report.factory import a_gpu_run, a_module, a_run

REPORTS = {
    "one run": [a_run()],
    "a GPU run": [a_gpu_run()],
    "several runs": [a_run(), a_gpu_run(), a_run()],
    "an empty run": [a_run(modules=[], ledger=[], hotspots=[], impls={}, not_measured=[], warnings=[])],
}
VOID = {"meta", "wbr", "br", "rect"}
TEXT_ON = [("text", "page"), ("text", "panel"), ("quiet", "page"), ("link", "page"), ("warn-text", "warn-page")]
MARK_ON = [("mark", "page"), ("mark", "panel"), ("warn-line", "page")]


class Document(HTMLParser):
    """The tags, attributes and text of a page; fails on a tag that is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(params=REPORTS)
def page(request) -> Document:
    return Document(html.render(REPORTS[request.param]))


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
    widths = [attributes["width"] for tag, attributes in Document(html.render([a_run()])).tags if tag == "rect"]
    assert "33.2" in widths and "100.0" in widths
    assert all(float(width) >= 0 for width in widths)


def test_a_name_is_never_markup():
    name = "<script>alert('a&b')</script>"
    text = html.render([a_run(modules=[a_module(name)], warnings=[name], workload={"model": name})])
    assert "<script" not in text
    assert Document(text).text.count(name) >= 4


def test_a_long_table_is_folded_and_nothing_of_it_is_lost():
    names = [f"layer.{at:03}" for at in range(40)]
    page = Document(html.render([a_run(modules=[a_module(name) for name in names])]))
    assert sum(tag == "details" for tag, _ in page.tags) == 2  # their times and their rooflines
    assert "15 more modules" in page.text
    assert all(page.text.count(name) == 2 for name in names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_palette_has_contrast(scheme):
    palette = _palettes(html.render([a_run()]))[scheme]
    assert all(_contrast(palette[ink], palette[ground]) >= 4.5 for ink, ground in TEXT_ON)
    assert all(_contrast(palette[ink], palette[ground]) >= 3 for ink, ground in MARK_ON)


def _palettes(text: str) -> dict[str, dict[str, str]]:
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", root)) for root in re.findall(r":root \{(.*?)\}", text, re.S)
    )
    assert light.keys() == dark.keys()
    return {"light": light, "dark": dark}


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2, 1.4.3."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
