"""The charts of a report as Vega-Altair specifications.

A colour is a variable of the page's style sheet with a value of its own behind it, so that a chart follows a dark page
and keeps its meaning where the style sheet is blocked; text takes the page's colour. No meaning rests on colour alone:
verdicts have shapes, losses a sign, segments their name. ``about`` is what a mark says when it is pointed at.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mfubench.figures import Ceiling, Curves, Dots, Drop, Figure, Level, Mark, Roofline, Stacks, Waterfall
from mfubench.run import family_place

from . import format as fmt

if TYPE_CHECKING:
    import altair as alt

WIDTH, HEIGHT, BAND = 700, 420, 20
LEGEND = 36  # between entries
LEAST_SHOWN = 0.001  # of the step, in a label
MARGIN = 30  # to the right, for labels at the end of a bar
CHARACTER = 7.6  # pixels of a wide font, at the size of labels
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
TEXT, QUIET, GRID, PAGE = "currentColor", "var(--quiet, #55606d)", "var(--line, #d5dae0)", "var(--page, #ffffff)"
# For a light page; report.css has the same names for a dark one.
PALETTE = {
    "blue": "#2f6fb3",
    "orange": "#a15c00",
    "purple": "#7a52bd",
    "pink": "#b3417d",
    "teal": "#0f7a71",
    "brown": "#85592f",
    "red": "#bb3f2c",
    "olive": "#67701c",
    "cyan": "#0f7796",
    "green": "#2f7a38",
    "navy": "#33417f",
    "grey": "#65707b",
}
VERDICTS = {
    "compute-bound": ("blue", "circle"),
    "memory-bound": ("orange", "square"),
    "launch-bound": ("purple", "triangle-up"),
    "communication-bound": ("navy", "arrow"),
    "padding-bound": ("pink", "diamond"),
    "recompute-bound": ("teal", "triangle-down"),
    "dtype-bound": ("brown", "triangle-left"),
    "inefficient": ("red", "cross"),
}
OTHER_VERDICT = ("grey", "triangle-right")
FAMILIES = {
    "padding": "pink",
    "recompute": "teal",
    "useful": "blue",
    "peak_gap": "cyan",
    "dtype": "brown",
    "memory_bound": "orange",
    "inefficiency": "red",
    "optimizer": "olive",
    "data": "green",
    "communication": "navy",
    "launch": "purple",
}
OTHER_FAMILY = "grey"
RATIOS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6, 2, 3, 4, 6, 10]
RATIOS_NEAR = (0.8, 1.25)  # too few of them lie between
SERIES = (("blue", "circle"), ("orange", "diamond"), ("teal", "square"))
MORE_SERIES = (
    *(("purple", "triangle-up"), ("pink", "cross"), ("brown", "triangle-down")),
    *(("cyan", "triangle-right"), ("olive", "triangle-left")),
)
IN_A_ROW = 5  # entries of a legend
NAME = 130  # pixels of an entry's name


def spec(figure: Figure) -> dict[str, Any]:
    """The Vega-Lite specification of ``figure``."""
    match figure:
        case Waterfall():
            drawn = _waterfall(figure)
        case Roofline():
            drawn = _roofline(figure)
        case Stacks():
            drawn = _stacks(figure)
        case Dots():
            drawn = _dots(figure)
        case Curves():
            drawn = _curves(figure)
    plain: dict[str, Any] = {"titleFontWeight": "normal", "labelColor": TEXT, "titleColor": TEXT, "labelFontSize": 12}
    styled = (
        drawn.configure(
            background="transparent", font=FONT, padding={"left": 5, "top": 5, "right": MARGIN, "bottom": 5}
        )
        .configure_view(stroke=None)
        .configure_axis(**plain, gridColor=GRID, domainColor=QUIET, tickColor=QUIET, labelLimit=0, titleFontSize=12)
        .configure_legend(**plain, titleFontSize=12, symbolStrokeColor=TEXT)
    )
    document: dict[str, Any] = styled.to_dict()
    return document


def color(name: str) -> str:
    """A colour of the palette that follows the page's scheme."""
    return f"var(--chart-{name}, {PALETTE[name]})"


def _chart(rows: Iterable[Mapping[str, Any]]) -> "alt.Chart":
    import altair as alt

    return alt.Chart(alt.Data(values=list(rows)))


def _waterfall(figure: Waterfall) -> "alt.LayerChart":
    import altair as alt

    whole = f"the {figure.step}, {fmt.number(figure.step_ms, 4)} ms"
    useful = f"what is left: {fmt.percent(figure.useful)} of the step is useful, and that is the MFU"
    rows = [
        _bar("the step", "whole", 0.0, 1.0, "100 %", whole),
        *map(_drop, figure.drops),
        _bar("useful = MFU", "whole", 0.0, figure.useful, fmt.percent(figure.useful), useful),
    ]
    links = [{"row": row["row"], "next": after["row"], "left": row["left"]} for row, after in pairwise(rows)]
    kinds = alt.Scale(domain=["whole", "loss", "gain"], range=[color("blue"), color("red"), color("teal")])
    y = alt.Y("row:N", sort=[row["row"] for row in rows], title=None, axis=_names(row["row"] for row in rows))
    x = alt.X("low:Q", title=f"share of the {figure.step}", scale=alt.Scale(nice=False), axis=alt.Axis(format=".0%"))
    kind = alt.Color("kind:N", scale=kinds, legend=None)
    bars = _chart(rows).mark_bar(height={"band": 0.7}).encode(x=x, x2="high:Q", y=y, color=kind, description="about:N")
    labels = _chart(rows).mark_text(align="left", dx=5, color=TEXT, fontSize=12).encode(x="high:Q", y=y, text="label:N")
    steps = _chart(links).mark_rule(color=QUIET).encode(x="left:Q", y=y, y2="next:N")
    return alt.layer(steps, bars, labels).properties(width=WIDTH, height={"step": BAND})


def _names(names: Iterable[str]) -> "alt.Axis":
    """An axis with room for ``names`` in the font of the page, which is not the one that they are measured in here."""
    import altair as alt

    return alt.Axis(ticks=False, domain=False, labelPadding=8, minExtent=CHARACTER * max(map(len, names)))


def _drop(drop: Drop) -> dict[str, Any]:
    line = drop.line
    kind, sign = ("gain", "+") if line.share < 0 else ("loss", "−" if line.share else "")
    modules = f" in {', '.join(line.modules)}" if line.modules else ""
    share = f"{sign}{100 * abs(line.share):.1f} %" if abs(line.share) >= LEAST_SHOWN / 2 else "< 0.1 %"
    about = f"{line.cause}: {fmt.number(line.ms, 4)} ms, {fmt.percent(line.share)} of the step{modules}"
    return _bar(line.cause, kind, drop.before, drop.left, share, about)


def _bar(row: str, kind: str, before: float, left: float, label: str, about: str) -> dict[str, Any]:
    low, high = sorted((before, left))
    return {"row": row, "kind": kind, "low": low, "high": high, "left": left, "label": label, "about": about}


def _roofline(figure: Roofline) -> "alt.LayerChart":
    import altair as alt

    place = {
        "x": alt.X(
            "intensity:Q",
            title="model FLOPs for each byte that must move",
            scale=_logarithmic(figure.intensities),
            axis=alt.Axis(values=figure.intensities, format="~g"),
        ),
        "y": alt.Y(
            "rate:Q",
            title="model FLOP/s",
            scale=_logarithmic(figure.rates),
            axis=alt.Axis(values=figure.rates, format="~s"),
        ),
    }
    corners = [ceiling.corners(figure.intensities, figure.rates) for ceiling in figure.ceilings]
    roofs = [
        {"name": _ceiling_name(ceiling), "basis": ceiling.basis, "intensity": intensity, "rate": rate}
        for ceiling, points in zip(figure.ceilings, corners, strict=True)
        for intensity, rate in points
    ]
    names = [
        {"intensity": ends[-1][0], "rate": ends[-1][1], "name": _ceiling_name(ceiling)}
        for ceiling, ends in zip(figure.ceilings, corners, strict=True)
    ]
    dashes = alt.Scale(domain=["measured", "datasheet"], range=[[1, 0], [6, 4]])
    dash = alt.StrokeDash("basis:N", scale=dashes, legend=None)
    lines = (
        _chart(roofs)
        .mark_line(color=TEXT, strokeWidth=1.5)
        .encode(**place, detail="name:N", strokeDash=dash, description="name:N")
    )
    labels = _chart(names).mark_text(align="right", dy=-8, color=TEXT, fontSize=12).encode(**place, text="name:N")
    marks = [_mark(mark) for mark in figure.marks]
    points = (
        _chart(marks)
        .mark_point(filled=True, opacity=0.7, stroke=PAGE, strokeWidth=1)
        .encode(
            **place,
            **_verdicts(mark["verdict"] for mark in marks),
            size=alt.Size("share:Q", scale=alt.Scale(domainMin=0, range=[25, 1500]), legend=None),
            description="about:N",
        )
    )
    numbers = [_mark(mark) | {"ranks": _ranks(ranks)} for mark, ranks in figure.labels]
    bold: dict[str, Any] = {"color": TEXT, "fontSize": 12, "fontWeight": "bold", "align": "left", "dx": 9}
    halos = _chart(numbers).mark_text(**bold, stroke=PAGE, strokeWidth=3).encode(**place, text="ranks:N")
    ranks = _chart(numbers).mark_text(**bold).encode(**place, text="ranks:N")
    return alt.layer(lines, labels, points, halos, ranks).properties(width=WIDTH, height=HEIGHT)


def _logarithmic(decades: list[float]) -> "alt.Scale":
    import altair as alt

    return alt.Scale(type="log", domain=[decades[0], decades[-1]], nice=False)


def _verdicts(seen: Iterable[str]) -> "dict[str, alt.Color | alt.Shape]":
    import altair as alt

    names = sorted(set(seen), key=lambda verdict: (*VERDICTS, verdict).index(verdict))
    looks = [VERDICTS.get(name, OTHER_VERDICT) for name in names]
    legend = alt.Legend(title="verdict", orient="top", symbolSize=140, columnPadding=LEGEND)
    colors = alt.Scale(domain=names, range=[color(hue) for hue, _ in looks])
    shapes = alt.Scale(domain=names, range=[shape for _, shape in looks])
    return {
        "color": alt.Color("verdict:N", scale=colors, legend=legend),
        "shape": alt.Shape("verdict:N", scale=shapes, legend=legend),
    }


def _ranks(ranks: list[int]) -> str:
    in_a_row = len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1))
    return f"{ranks[0]}–{ranks[-1]}" if in_a_row else ", ".join(map(str, ranks))


def _ceiling_name(ceiling: Ceiling) -> str:
    rate, bandwidth = fmt.flops(ceiling.flop_s), fmt.number(ceiling.gb_s)
    return f"{ceiling.dtype} {ceiling.basis}: {rate}/s, {bandwidth} GB/s"


def _mark(mark: Mark) -> dict[str, Any]:
    row = mark.row
    about = (
        f"{mark.rank}. {row.name}: {fmt.number(row.time_ms)} ms, {fmt.percent(row.share)} of the step, {row.verdict}; "
        f"{fmt.flops(mark.flop_s)}/s of {fmt.flops(mark.attainable_flop_s)}/s attainable at "
        f"{fmt.number(mark.intensity)} FLOP/byte"
    )
    return {
        "verdict": row.verdict,
        "intensity": mark.intensity,
        "rate": mark.flop_s,
        "share": row.share,
        "about": about,
    }


def _stacks(figure: Stacks) -> "alt.LayerChart":
    import altair as alt

    rows: list[dict[str, Any]] = [
        {
            "run": f"run {at}",
            "family": segment.family,
            "low": segment.low_ms,
            "high": segment.high_ms,
            "name": segment.family if segment.wide else "",
            "about": f"run {at}, {segment.family}: {fmt.number(segment.ms)} ms, {fmt.percent(segment.share)} of it",
        }
        for at, stack in enumerate(figure.stacks, 1)
        for segment in stack.segments
    ]
    steps: list[dict[str, Any]] = [
        {"run": f"run {at}", "right": stack.right_ms, "label": f"{fmt.number(stack.step_ms, 4)} ms"}
        for at, stack in enumerate(figure.stacks, 1)
    ]
    families = sorted({row["family"] for row in rows}, key=family_place)
    hues = alt.Scale(domain=families, range=[color(FAMILIES.get(family, OTHER_FAMILY)) for family in families])
    legend = alt.Legend(title="cause", orient="top", columns=5, symbolType="square", columnPadding=LEGEND)
    y = alt.Y("run:N", sort=[step["run"] for step in steps], title=None, axis=_names(step["run"] for step in steps))
    x = alt.X("low:Q", title="ms of the median step", scale=alt.Scale(nice=False))
    hue = alt.Color("family:N", scale=hues, legend=legend)
    bars = _chart(rows).mark_bar(height={"band": 0.7}, stroke=PAGE, strokeWidth=1)
    names = _chart([row for row in rows if row["name"]]).mark_text(align="left", dx=4, color=PAGE, fontSize=11)
    ends = _chart(steps).mark_text(align="left", dx=6, color=TEXT, fontSize=12)
    return alt.layer(
        bars.encode(x=x, x2="high:Q", y=y, color=hue, description="about:N"),
        names.encode(x="low:Q", y=y, text="name:N"),
        ends.encode(x="right:Q", y=y, text="label:N"),
    ).properties(width=WIDTH, height={"step": 2 * BAND})


def _dots(figure: Dots) -> "alt.LayerChart":
    import altair as alt

    rows = list(map(asdict, figure.dots))
    several = len(figure.series) > 1
    looks = dict(zip(figure.series, SERIES, strict=False))
    legend = alt.Legend(title=None, orient="top", symbolSize=120, columnPadding=LEGEND) if several else None
    domain = list(looks)
    hue = alt.Color(
        "series:N", legend=legend, scale=alt.Scale(domain=domain, range=[color(h) for h, _ in looks.values()])
    )
    shape = alt.Shape("series:N", legend=legend, scale=alt.Scale(domain=domain, range=[s for _, s in looks.values()]))
    places = {
        "y": alt.Y("row:N", sort=figure.rows, title=None, axis=_names(figure.rows)),
        "yOffset": alt.YOffset("series:N", sort=domain),
    }
    scale = alt.Scale(type="log", nice=False, padding=BAND) if figure.ratios else alt.Scale(zero=True)
    axis = _ratio_axis(figure) if figure.ratios else alt.Axis(format="~%", tickCount=8)
    x = alt.X("low:Q", title=figure.title, scale=scale, axis=axis)
    whiskers = _chart(rows).mark_rule(strokeWidth=2).encode(x=x, x2="high:Q", **places, color=hue)
    points = (
        _chart(rows)
        .mark_point(filled=True, size=70, opacity=1)
        .encode(x="value:Q", **places, color=hue, shape=shape, description="about:N")
    )
    one = [_chart([{"low": 1.0}]).mark_rule(color=QUIET, strokeDash=[4, 4]).encode(x="low:Q")] if figure.ratios else []
    height = {"step": 2 * BAND if several else BAND, "for": "position"}
    return alt.layer(*one, whiskers, points).properties(width=WIDTH, height=height)


def _ratio_axis(figure: Dots) -> "alt.Axis":
    """Ratios that a reader expects, or where all are near 1, those between."""
    import altair as alt

    near = all(RATIOS_NEAR[0] < dot.low and dot.high < RATIOS_NEAR[1] for dot in figure.dots)
    return alt.Axis(format="~g", tickCount=8) if near else alt.Axis(format="~g", values=RATIOS)


def _curves(figure: Curves) -> "alt.LayerChart":
    import altair as alt

    sizes = [asdict(size) | {"series": curve.series} for curve in figure.curves for size in curve.sizes]
    laws = [
        {"compute": compute, "value": value, "series": curve.series, "about": curve.about}
        for curve in figure.curves
        for compute, value in curve.line
    ]
    across = alt.Scale(type="log", domain=list(figure.computes), nice=False)
    up = alt.Scale(domain=list(figure.values), zero=False, nice=False)
    axis = alt.Axis(values=figure.ticks, format="~s", titlePadding=8)
    places = {
        "x": alt.X("compute:Q", title=figure.of_compute, scale=across, axis=axis),
        "y": alt.Y("value:Q", title=figure.title, scale=up, axis=alt.Axis(tickCount=7, minExtent=6 * CHARACTER)),
    }
    hue, shape = _series([curve.series for curve in figure.curves])
    lines = _chart(laws).mark_line(strokeWidth=2).encode(**places, color=hue, description="about:N")
    whiskers = _chart(sizes).mark_rule(strokeWidth=1.5).encode(x=places["x"], y="low:Q", y2="high:Q", color=hue)
    points = (
        _chart(sizes)
        .mark_point(filled=True, size=130, opacity=1, stroke=PAGE, strokeWidth=1)
        .encode(**places, color=hue, shape=shape, description="about:N")
    )
    beside: dict[str, Any] = {"fontSize": 12, "align": "left", "dx": 8, "dy": -9, "color": TEXT}
    named = _chart(map(asdict, figure.labels)).encode(**places, text="name:N")
    names = [named.mark_text(**beside, stroke=PAGE, strokeWidth=3), named.mark_text(**beside)]
    return alt.layer(*_levels(figure, places["y"]), lines, whiskers, points, *names).properties(
        width=WIDTH, height=HEIGHT
    )


def _series(names: list[str]) -> "tuple[alt.Color, alt.Shape]":
    """Colours and shapes; of very many series they repeat, not both at once."""
    import altair as alt

    looks = (*SERIES, *MORE_SERIES)
    hues = [color((*(hue for hue, _ in looks), "grey")[at % (len(looks) + 1)]) for at in range(len(names))]
    shapes = [looks[at % len(looks)][1] for at in range(len(names))]
    legend = alt.Legend(
        title=None, orient="top", symbolSize=120, columns=IN_A_ROW, columnPadding=LEGEND / 2, labelLimit=NAME
    )
    return (
        alt.Color("series:N", legend=legend, scale=alt.Scale(domain=names, range=hues)),
        alt.Shape("series:N", legend=legend, scale=alt.Scale(domain=names, range=shapes)),
    )


def _levels(figure: Curves, y: "alt.Y") -> "list[alt.Chart]":
    """A line for each level, its name at the right end; those that are off the chart are named at its edge."""
    rows = [{"value": level.value, "name": _level_name(level)} for level in figure.levels]
    upper = rows[:-1] or rows
    words: dict[str, Any] = {"align": "right", "dx": -4, "color": TEXT, "fontSize": 12}
    layers = [_chart(rows).mark_rule(color=QUIET, strokeDash=[4, 4]).encode(y=y, description="name:N")] if rows else []
    for part, dy in ((upper, -7), (rows[len(upper) :], 9)):  # apart, so that two that are close can be read
        if part:
            layers.append(_chart(part).mark_text(**words, x="width", dy=dy).encode(y=y, text="name:N"))
    for place, dy, side, levels in (("↑", 10, 0, figure.above), ("↓", -10, "height", figure.below)):
        if levels:
            off = [{"name": f"{place} {', '.join(map(_level_name, levels))}"}]
            layers.append(_chart(off).mark_text(**words, x="width", y=side, dy=dy).encode(text="name:N"))
    return layers


def _level_name(level: Level) -> str:
    return f"{level.name} {fmt.number(level.value, 4)}"
