"""What a performance gate found, for a CI service: JUnit XML, GitHub's annotations, and a summary or comment for it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any
from xml.etree import ElementTree

from mfubench.gate.rows import Row

from . import format as fmt
from .blocks import Facts, Items, Page, Section
from .gate import (
    DOCUMENT,
    Document,
    compared,
    counted,
    explained,
    forest,
    headline,
    method,
    rows_of,
    rows_table,
    timings_of,
    where_table,
)
from .markdown import render_page

MARKER = "<!-- mfubench gate -->"
"""The first line of a summary, by which a bot finds its own comment again."""
MOST_ANNOTATIONS = 10  # of a kind in a step; GitHub drops what comes after
MOST_MESSAGE = 4000  # characters of an annotation
MOST_ROWS = 20  # of a summary
MOST_SENTENCES = 10  # warnings, or notes
MOST_CELL = 300  # characters of a text in a summary
MOST_SUMMARY = 60_000  # characters; a comment may have 65 536
ANNOTATED = {"error": ("FAIL", "ERROR"), "warning": ("CHANGED", "INCONCLUSIVE", "ENVIRONMENT")}
NOT_JUDGED = ("INCONCLUSIVE", "ENVIRONMENT", "NO_BASELINE")
NUMBERS = ("base", "head", "ratio [95 % CI]", "allowed")  # columns of the table
OUTCOMES = {"failures": "failure", "errors": "error", "skipped": "skipped"}  # attribute of a suite: element of a case
# An @ that would call a person, a # that would leave a mark in another issue.
CALLS = re.compile(r"@(?=\w)|#(?=\d)")
KEEP_APART = "\u200b"  # a space of no width


def junit(told: Document) -> str:
    """JUnit XML: a suite a benchmark, a case a row, called as a waiver calls it."""
    root = ElementTree.Element("testsuites", name="mfubench gate")
    by_benchmark: dict[str, list[Row]] = {}
    for row in rows_of(fmt.cleaned(told)):
        by_benchmark.setdefault(row.benchmark, []).append(row)
    for benchmark, rows in by_benchmark.items():
        suite = ElementTree.SubElement(root, "testsuite", name=benchmark)
        for row in rows:
            _case(suite, row)
        _count(suite)
    _count(root)
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document.decode("utf-8") + "\n"


def _case(suite: ElementTree.Element, row: Row) -> None:
    place = {"file": row.file, "line": None if row.line is None else str(row.line)}
    known = {name: value for name, value in place.items() if value is not None}
    named = {"classname": row.benchmark, "name": f"{row.subject} {row.metric}".strip()}
    case = ElementTree.SubElement(suite, "testcase", {**named, **known})
    if row.verdict == "FAIL" and row.waived is not None:
        outcome = ElementTree.SubElement(case, "skipped", message=f"waived {row.waived}")
        outcome.text = row.explanation
    elif row.verdict in ("FAIL", "ERROR"):
        kind = "failure" if row.verdict == "FAIL" else "error"
        outcome = ElementTree.SubElement(case, kind, message=row.explanation, type=row.verdict)
        outcome.text = _numbers(row)
    elif row.verdict in NOT_JUDGED:
        ElementTree.SubElement(case, "skipped", message=f"{row.verdict}: {row.explanation}")
    elif row.verdict != "PASS":
        ElementTree.SubElement(case, "system-out").text = f"{row.verdict}: {row.explanation}; {_numbers(row)}"


def _numbers(row: Row) -> str:
    """What the table has of a row beside its why, in a line."""
    table = rows_table([row], "")
    named = zip((column.header for column in table.columns), table.rows[0], strict=True)
    return ", ".join(f"{header} {cell}" for header, cell in named if header in NUMBERS)


def _count(element: ElementTree.Element) -> None:
    """Say how many cases an element has, and how they ended."""
    element.set("tests", str(len(list(element.iter("testcase")))))
    for attribute, tag in OUTCOMES.items():
        element.set(attribute, str(len(list(element.iter(tag)))))


def annotations(told: Document) -> list[str]:
    """GitHub workflow commands, one a line, the worst first: what fails, then what to look at."""
    rows = rows_of(fmt.cleaned(told))
    return [
        line
        for kind, verdicts in ANNOTATED.items()
        for line in _annotated(kind, [row for row in rows if row.counts in verdicts])
    ]


def _annotated(kind: str, rows: Sequence[Row]) -> Iterator[str]:
    shown = rows if len(rows) <= MOST_ANNOTATIONS else rows[: MOST_ANNOTATIONS - 1]
    for row in shown:
        at = {"file": row.file, "line": row.line} if row.file is not None else {}
        yield _command(kind, {**at, "title": row.name}, f"{row.counts}: {explained(row)}")
    more = len(rows) - len(shown)
    if more:
        yield _command(kind, {"title": "mfubench gate"}, f"{more} more; {DOCUMENT} lists them all")


def _command(kind: str, properties: dict[str, str | int | None], message: str) -> str:
    """A workflow command, escaped as GitHub's toolkit does it."""
    given = [f"{name}={_property(str(value))}" for name, value in properties.items() if value is not None]
    return f"::{kind} {','.join(given)}::{_data(_short(message, MOST_MESSAGE))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def summary(told: Document) -> str:
    """GitHub Markdown for a step's summary or a comment, which has as many of the worst rows as fit."""
    told = fmt.cleaned(told)
    shown = [row for row in rows_of(told) if row.counts != "PASS"]
    most, details = min(MOST_ROWS, len(shown)), _details(told)
    # A row says more than all that is folded.
    tries = [
        *((number, details) for number in range(most, min(most, 1) - 1, -1)),
        *((n, "") for n in range(most, 0, -1)),
    ]
    for number, after in tries:
        text = f"{MARKER}\n{_above(told, shown, number)}\n{after}"
        if len(text) <= MOST_SUMMARY:
            return text
    return f"{MARKER}\n{_above(told, shown, 0)}"


def _above(told: Document, shown: Sequence[Row], number: int) -> str:
    """Verdict, warnings, the first ``number`` rows, and how many there are besides."""
    after = [f"All rows: {counted(told['counted']) or 'none'}."]
    if shown[number:]:
        after.insert(0, f"{fmt.count(len(shown[number:]))} more rows that do not pass; {DOCUMENT} lists them all.")
    first = list(map(_shortened, shown[:number]))
    where = [replace(table, rows=[list(map(_short, row)) for row in table.rows]) for table in where_table(first)]
    table = [rows_table(first, "Head beside base, the worst first."), *where] if first else []
    time = [replace(chart, summary=_short(chart.summary)) for chart in forest(timings_of(told))]
    page = Page(
        title="Performance gate",
        headline=_short(headline(told)),
        warnings=_first(told["warnings"]),
        sections=[Section("What to look at", [*table, *time, Items(after)])],
    )
    return _calls_nobody(render_page(page, level=2))


def _details(told: Document) -> str:
    """What explains the verdict and no one needs who only wants to know it: folded."""
    how = Items(_first(method(told)))
    page = Page(
        title="What was compared",
        headline=_short(" ".join(f"{told['head']['given']} against {told['base']['given']}".split())),
        warnings=[],
        sections=[
            Section("Base, head and policy", [_facts(compared(told))]),
            Section("Environment", [_facts(Facts.of(told["environment"]))]),
            Section("Method and notes", [how]),
        ],
    )
    return (
        "<details>\n<summary>Base, head, environment and method</summary>\n\n"
        f"{_calls_nobody(render_page(page, level=3))}\n</details>\n"
    )


def _facts(facts: Facts) -> Facts:
    return Facts([(_short(key), _short(value)) for key, value in facts.pairs])


def _first(sentences: Sequence[str]) -> list[str]:
    more = len(sentences[MOST_SENTENCES:])
    after = [f"{fmt.count(more)} more; {DOCUMENT} lists them all."] if more else []
    return [_short(sentence) for sentence in sentences[:MOST_SENTENCES]] + after


def _shortened(row: Row) -> Row:
    """The row with no text longer than a cell may be."""
    texts: dict[str, Any] = {name: _short(value) for name, value in asdict(row).items() if isinstance(value, str)}
    return replace(row, **texts)


def _short(text: str, most: int = MOST_CELL) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _calls_nobody(markdown: str) -> str:
    """Compilers quote decorators: what stands behind an @ in their messages would be told of each comment."""
    return CALLS.sub(lambda found: found[0] + KEEP_APART, markdown)
