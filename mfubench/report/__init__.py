"""Runs as reports: terminal, Markdown and HTML. All three render the same blocks; none computes anything."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from mfubench.run import Run, write_text

if TYPE_CHECKING:
    from .blocks import Chart, Page
    from .markdown import Picture


def write_reports(runs: Sequence[Run], folder: Path) -> None:
    """Write report.md, its charts and report.html of ``runs`` into ``folder``, which is made where it is missing."""
    from .comparison import page

    write_page(page(runs), folder)


def write_page(page: "Page", folder: Path) -> None:
    """The same for any page."""
    from . import html, markdown

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", markdown.render_page(page, picture=pictures(folder)))
    write_text(folder / "report.html", html.render_page(page))


def pictures(folder: Path) -> "Picture | None":
    """Draws a chart into ``folder`` and names its file, report-1.svg first; None where nothing can be drawn."""
    from . import charts

    if charts.why_not():
        return None
    numbers = count(1)

    def picture(chart: "Chart") -> str:
        file = f"report-{next(numbers)}.svg"
        write_text(folder / file, charts.picture(chart))
        return file

    return picture
