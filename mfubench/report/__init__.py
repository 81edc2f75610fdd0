"""Runs as reports: terminal, Markdown and HTML. All three render the same blocks; none computes anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mfubench.run import Run, write_text

if TYPE_CHECKING:
    from .blocks import Page


def write_reports(runs: Sequence[Run], folder: Path) -> None:
    """Write report.md and report.html of ``runs`` into ``folder``, which is made where it is missing."""
    from .comparison import page

    write_page(page(runs), folder)


def write_page(page: "Page", folder: Path) -> None:
    """The same for any page."""
    from . import html, markdown

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", markdown.render_page(page))
    write_text(folder / "report.html", html.render_page(page))
