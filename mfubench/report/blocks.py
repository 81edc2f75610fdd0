"""What a report is made of, as plain data: every output renders these and nothing else, so all say the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mfubench.figures import Figure

from . import format as fmt


@dataclass(frozen=True, slots=True)
class Column:
    """One column. The unit stands in the header.

    ``numeric`` ones align right; a ``bar`` one holds percentages that a page may draw; only ``brief`` ones are shown
    where space is short.
    """

    header: str
    numeric: bool = False
    bar: bool = False
    brief: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text, the worst first. The first cell of a row names it.

    ``rest`` is what the rows are called where only the first of them are shown ("modules"); a table without it is
    always shown whole, and ``listed_in`` is the file that has all of them. ``total`` closes the table.
    """

    caption: str
    columns: list[Column]
    rows: list[list[str]]
    rest: str = ""
    total: list[str] | None = None
    listed_in: str = "run.json"

    @classmethod
    def of(cls, caption: str, columns: list[tuple[Column, list[str]]], rest: str = "") -> "Table":
        """A table from whole columns, all of one length."""
        rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
        return cls(caption, [column for column, _ in columns], rows, rest)


def known(columns: list[tuple[Column, list[str]]]) -> list[tuple[Column, list[str]]]:
    """The columns that have something in them that is known."""
    return [(column, cells) for column, cells in columns if set(cells) != {fmt.NOT_KNOWN}]


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and their values."""

    pairs: list[tuple[str, str]]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Facts":
        """The keys of a document as words, with their values as text."""
        return cls([(fmt.label(key), fmt.value(key, given)) for key, given in values.items()])


@dataclass(frozen=True, slots=True)
class Items:
    """Sentences, one below the other."""

    sentences: list[str]


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure that a page may draw, and the sentence that says what it shows; its numbers are in the table below."""

    title: str
    summary: str
    figure: Figure


Block = Table | Facts | Items | Chart


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks under a heading; only ``brief`` sections are shown where space is short."""

    title: str
    blocks: list[Block]
    brief: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A report, or one run's part of it: the verdict in a sentence, what bounds it, the sections that prove it."""

    title: str
    headline: str
    warnings: list[str]
    sections: list[Section]
    parts: list["Page"] = field(default_factory=list)
