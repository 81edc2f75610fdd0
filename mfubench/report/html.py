"""A report as one HTML file that fetches nothing and runs nothing."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from . import charts
from . import format as fmt
from .blocks import Chart, Page

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).parent / "templates"
ROWS, MOST_ROWS = 25, 400  # of a table: shown at once, and in all, so that a page stays below a megabyte


def render_page(given: Page) -> str:
    """Any page; a long table is folded after its first rows, and a very long one ends."""
    why_not = charts.why_not() if has_charts(given) else ""
    return _template().render(page=given, shown=ROWS, most=MOST_ROWS, draw=charts.svg, why_no_charts=why_not)


def has_charts(given: Page) -> bool:
    """Whether there is a chart anywhere in it."""
    drawn = any(isinstance(block, Chart) for section in given.sections for block in section.blocks)
    return drawn or any(map(has_charts, given.parts))


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["more"] = fmt.more
    return environment.get_template("report.html.j2")
