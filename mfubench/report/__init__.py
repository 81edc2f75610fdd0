"""Runs as reports: terminal, Markdown and HTML. All three render the same blocks; none computes anything."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mfubench.files import write_text
from mfubench.run import Run

if TYPE_CHECKING:
    from .blocks import Chart, Page

PICTURE = re.compile(r"report-\d+\.svg")


def write_reports(runs: Sequence[Run], folder: Path) -> None:
    """Write report.md, its charts and report.html of ``runs`` into ``folder``, which is made where it is missing."""
    from .comparison import page

    write_page(page(runs), folder)


def write_page(page: "Page", folder: Path) -> dict[str, str]:
    """The same for any page; gives the files of its charts by their titles, none where nothing can be drawn."""
    from . import charts, html, markdown

    folder.mkdir(parents=True, exist_ok=True)
    files: list[tuple[str, str]] = []

    def picture(chart: "Chart") -> str:
        file = f"report-{len(files) + 1}.svg"
        write_text(folder / file, charts.picture(chart))
        files.append((chart.title, file))
        return file

    can_draw = html.has_charts(page) and not charts.why_not()
    write_text(folder / "report.md", markdown.render_page(page, picture=picture if can_draw else None))
    write_text(folder / "report.html", html.render_page(page))
    drawn = {file for _, file in files}
    for file in folder.glob("report-*.svg"):  # of an earlier report
        if PICTURE.fullmatch(file.name) and file.name not in drawn:
            file.unlink()
    return dict(files)
