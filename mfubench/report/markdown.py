"""A report as GitHub Markdown."""

import re
from collections.abc import Callable

from . import format as fmt
from .blocks import Block, Chart, Facts, Items, Page, Table

ROWS = 20
# Markup that GitHub would act on: an underscore inside a word and a bracket that opens no link are left alone.
Picture = Callable[[Chart], str]
"""The file, beside the report, that has the chart."""
SPECIAL = re.compile(r"[\\`*<>|~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[])")


def render_page(given: Page, level: int = 1, picture: Picture | None = None) -> str:
    """Any page, its title a heading of ``level``; without ``picture``, a chart is what it says in words.

    Of a long table there are the first rows, and how many more it has.
    """
    return "\n\n".join(_page(given, level, picture)) + "\n"


def _page(given: Page, level: int, picture: Picture | None) -> list[str]:
    lines = [f"{'#' * level} {escape(given.title)}", f"**{escape(given.headline)}**"]
    if given.warnings:
        lines.append("\n".join(f"> - **Warning:** {escape(warning)}" for warning in given.warnings))
    for section in given.sections:
        blocks = [_block(block, picture) for block in section.blocks]
        lines += [f"{'#' * (level + 1)} {escape(section.title)}", *blocks]
    return [*lines, *(line for part in given.parts for line in _page(part, level + 1, picture))]


def _block(block: Block, picture: Picture | None) -> str:
    match block:
        case Items(sentences):
            return "\n".join(f"- {escape(sentence)}" for sentence in sentences)
        case Facts(pairs):
            return "\n".join(f"- **{escape(key)}**: {escape(given)}" for key, given in pairs)
        case Chart():
            return render_chart(block, picture)
        case Table():
            return render_table(block)


def render_chart(chart: Chart, picture: Picture | None) -> str:
    """Its picture, if there is one, above what it shows."""
    words = f"*{escape(chart.title)}*: {escape(chart.summary)}"
    return f"![{escape(chart.title)}]({picture(chart)})\n\n{words}" if picture else words


def render_table(table: Table) -> str:
    """A table below its caption."""
    rows = table.rows[:ROWS] if table.rest else table.rows
    lines = [
        _row([column.header for column in table.columns]),
        _row(["---:" if column.numeric else "---" for column in table.columns]),
        *(_row([escape(cell) for cell in row]) for row in rows),
    ]
    if table.total:
        lines.append(_row([f"**{escape(cell)}**" if cell else "" for cell in table.total]))
    more = len(table.rows) - len(rows)
    after = f"\n\n{fmt.more(more, table.rest)}; {table.listed_in} lists them all." if more else ""
    return f"{escape(table.caption)}\n\n" + "\n".join(lines) + after


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """``text`` in one line, with nothing in it that Markdown would act on."""
    return SPECIAL.sub(lambda found: f"\\{found[0]}", " ".join(text.splitlines()))
