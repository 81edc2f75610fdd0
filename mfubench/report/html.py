"""A report as one HTML file that fetches nothing and runs nothing."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mfubench.run import Run

from . import charts
from .blocks import Page
from .comparison import page

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).parent / "templates"
ROWS = 25
REMEDY = (
    "`pip install altair vl-convert-python` brings what draws charts; `mfubench report DIR --out DIR` then draws them, "
    "here or on another machine that has the run.json. Their numbers are in the tables."
)


def render(runs: Sequence[Run]) -> str:
    """The report of ``runs``; a long table is folded after its first rows."""
    return render_page(page(runs))


def render_page(given: Page) -> str:
    """Any page."""
    return _template().render(page=given, shown=ROWS, draw=charts.svg, why_no_charts=charts.why_not(), remedy=REMEDY)


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")
