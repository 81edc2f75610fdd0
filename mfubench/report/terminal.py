"""A report on a terminal, and the two consoles that the tool writes to.

The result goes to stdout, everything else to stderr. Text is folded, never cut, however narrow the terminal.
"""

import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from mfubench.run import Run

from . import format as fmt
from .blocks import Block, Chart, Facts, Items, Page, Table
from .comparison import page

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.containers import Lines
    from rich.text import Text

ROWS = 10
WIDE = 120  # columns that the widest tables take
WIDTH, HEIGHT = 160, 50  # where nobody tells the size: a pipe, a file, a CI log without $COLUMNS
DOTTED = re.compile(r"(?<=\.)(?=[^\s.])")  # where a module's name may be broken
WORD = re.compile(r"\S+")


def print_runs(runs: Sequence[Run], console: "Console", *, full: bool = False) -> None:
    """Print the report of ``runs``: verdict, warnings, ledger and the longest modules; with ``full`` every section.

    The widest tables leave columns out unless ``full`` is asked for and the console is wide.
    """
    print_page(page(runs), console, full=full)


@cache
def stdout_console() -> "Console":
    """The console of the result."""
    return _console(stderr=False)


@cache
def stderr_console() -> "Console":
    """The console of progress, warnings and logs."""
    return _console(stderr=True)


def _console(stderr: bool) -> "Console":
    """A console that is live only on a real terminal; elsewhere as wide as $COLUMNS says, or wide enough.

    rich takes 80 columns where there is no terminal, heeds a width on a dumb one only together with a height, and draws
    live displays into a pipe when colour is forced.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    live = stream.isatty() and not Console(stderr=stderr).is_dumb_terminal
    width = None if live else _columns()
    height = None if live else HEIGHT
    return Console(stderr=stderr, force_interactive=live, width=width, height=height, highlight=False, emoji=False)


def _columns() -> int:
    """$COLUMNS, where it is set to a number of columns."""
    told = os.environ.get("COLUMNS", "")
    return int(told) if told.isascii() and told.isdecimal() and int(told) else WIDTH


def print_page(given: Page, console: "Console", *, full: bool = False) -> None:
    """Print any page; without ``full`` only its brief sections."""
    console.print(_text(given.title, "bold underline"))
    console.print(_text(given.headline))
    for warning in given.warnings:
        console.print(_text("Warning: ", "bold yellow") + _text(warning))
    for section in given.sections:
        if full or section.brief:
            console.print()
            console.print(_text(section.title, "bold"))
            for block in section.blocks:
                console.print(_block(block, full and console.width >= WIDE))
    for part in given.parts:
        console.print()
        print_page(part, console, full=full)


def _block(block: Block, wide: bool) -> "RenderableType":
    match block:
        case Items(sentences):
            return _text("\n".join(f"- {sentence}" for sentence in sentences))
        case Facts(pairs):
            return _facts(pairs)
        case Chart():
            return _text(f"{block.title}: ", "italic") + _text(block.summary)
        case Table():
            return _table(block, wide)


def _facts(pairs: list[tuple[str, str]]) -> "RenderableType":
    from rich import table

    grid = table.Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold")
    for key, given in pairs:
        grid.add_row(_text(key), _text(given))
    return grid


def _table(given: Table, wide: bool) -> "RenderableType":
    from rich import box, table
    from rich.console import Group

    shown = [at for at, column in enumerate(given.columns) if wide or column.brief]
    rows = given.rows[:ROWS] if given.rest else given.rows
    drawn = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at in shown:
        column = given.columns[at]
        drawn.add_column(_text(column.header), justify="right" if column.numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(_cell(row[at]) for at in shown))
    if given.total:
        drawn.add_section()
        drawn.add_row(*(_text(given.total[at], "bold") for at in shown))
    more = len(given.rows) - len(rows)
    after = [_text(fmt.more(more, given.rest))] if more else []
    return Group(_text(given.caption, "dim"), drawn, *after)


def _text(given: str, style: str = "") -> "Text":
    """Text that is folded, never cut, and in which no name is taken for markup.

    rich breaks a line at a no-break space too, so numbers are not grouped here.
    """
    from rich.text import Text

    return Text(given.replace(fmt.GROUP, ""), style, overflow="fold")


def _cell(given: str) -> "Text":
    """As `_text`; what is wider than its column is broken after a dot, where it has one: a module's name is no word."""
    from rich.text import Text

    class Cell(Text):
        def wrap(self, console: "Console", width: int, **options: Any) -> "Lines":
            return _text(broken_at_dots(self.plain, width)).wrap(console, width, **options)

    plain = _text(given)
    return Cell(plain.plain, overflow="fold")


def broken_at_dots(text: str, width: int) -> str:
    """``text`` with a line break after the last dot that fits, in every word that is wider than ``width``."""
    return WORD.sub(lambda word: _broken(word[0], width) if len(word[0]) > width else word[0], text)


def _broken(word: str, width: int) -> str:
    lines = [""]
    for part in DOTTED.split(word):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
