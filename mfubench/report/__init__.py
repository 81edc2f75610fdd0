"""Runs as reports: terminal, Markdown and HTML. All three render the same blocks; none computes anything."""

from collections.abc import Sequence
from pathlib import Path

from mfubench.run import Run, write_text


def write_reports(runs: Sequence[Run], folder: Path) -> None:
    """Write report.md and report.html of ``runs`` into ``folder``, which is made where it is missing."""
    from . import html, markdown

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", markdown.render(runs))
    write_text(folder / "report.html", html.render(runs))
