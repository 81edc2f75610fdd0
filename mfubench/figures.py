"""The numbers of a report's charts, derived from the rows of a Run, so that a report only draws.

Shares are of the median step. All lists keep the order in which they are drawn.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log, log10

from .run import LedgerLine, ModuleRow, Run, family_of, family_place

USEFUL = "useful"
ROUNDING = 1e-9  # of a step: so little that is left is no time
NUM_MARKS = 100  # of a roofline: the longest modules; more would hide each other
NUM_LABELLED = 9  # of its marks
NEAR = 0.04  # of a roofline's width or height: marks whose labels would cover each other
WIDE = 0.12  # of the longest stack: what holds a family's name
LETTER = 0.012  # of a chart's width: a letter of a label
ROOM = 0.12  # beside the curves, of what they span
LEAST_DECADES = 0.5  # that curves span at least, so that one size alone has an axis
MANY_DECADES = 3  # that need no ticks between them
REACH = 1.0  # of what the curves span: how far beyond them a level is still drawn to scale


@dataclass(frozen=True, slots=True)
class Drop:
    """A line of the ledger in the waterfall: the share of the step that it takes, and what is left after it."""

    line: LedgerLine
    before: float
    left: float


@dataclass(frozen=True, slots=True)
class Waterfall:
    """From the whole step down to ``useful``, the share that is left when every other line has had its part.

    ``step`` says which step it is.
    """

    drops: list[Drop]
    useful: float
    step_ms: float
    step: str = "median step"

    def largest(self, number: int) -> list[Drop]:
        """The drops that take most."""
        return sorted(self.drops, key=lambda drop: -drop.line.share)[:number]


def waterfall(run: Run) -> Waterfall:
    """The ledger's own lines, in its order, taken from 100 % one after the other: what is useful remains."""
    drops, useful = _fall(run.ledger)
    return Waterfall(drops, useful, run.step["time_ms"]["median"])


def least_waterfall(ledger: Sequence[LedgerLine], step_ms: float) -> Waterfall:
    """The same of a step on the roofline, where the share that is left is the most that the MFU can be."""
    drops, useful = _fall(ledger)
    return Waterfall(drops, useful, step_ms, "least step")


def _fall(ledger: Sequence[LedgerLine]) -> tuple[list[Drop], float]:
    left, drops = 1.0, []
    for line in ledger:
        if line.cause != USEFUL:
            below = left - line.share
            below = 0.0 if abs(below) < ROUNDING else below
            drops.append(Drop(line, left, below))
            left = below
    return drops, left


@dataclass(frozen=True, slots=True)
class Mark:
    """A module on the roofline: FLOPs for each byte, FLOP/s that it reaches, FLOP/s that the roofline allows it."""

    rank: int
    row: ModuleRow
    intensity: float
    flop_s: float
    attainable_flop_s: float


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A roof: slanted at ``gb_s`` until its ridge, level at ``flop_s`` from there on."""

    basis: str
    dtype: str
    flop_s: float
    gb_s: float

    @property
    def ridge(self) -> float:
        """FLOPs for each byte from which on the bandwidth bounds no more."""
        return self.flop_s / (self.gb_s * 1e9)

    def corners(self, intensities: Sequence[float], rates: Sequence[float]) -> list[tuple[float, float]]:
        """The roof as (FLOPs for each byte, FLOP/s), from where it enters the decades of a chart to their end."""
        slope = self.gb_s * 1e9
        first, last = max(intensities[0], rates[0] / slope), intensities[-1]
        at = [first, *([self.ridge] if first < self.ridge < last else []), last]
        return [(intensity, min(self.flop_s, slope * intensity)) for intensity in at]


@dataclass(frozen=True, slots=True)
class Roofline:
    """Modules under the roofs of their device.

    ``num_modules`` have model FLOPs and time of their own, and the longest of them a mark; these hold ``marked_share``
    of the step, and the rest of it moves bytes or waits. ``labels`` are the places of the very longest, together where
    they would cover each other. ``intensities`` and ``rates`` are the decades between which all of it lies.
    """

    marks: list[Mark]
    labels: list[tuple[Mark, list[int]]]
    ceilings: list[Ceiling]
    num_modules: int
    marked_share: float
    intensities: list[float]
    rates: list[float]


def roofline(run: Run) -> Roofline | None:
    """The longest modules that have model FLOPs, and the roofs of each dtype that was used; None without modules."""
    ranked = sorted(
        (row for row in run.modules if row.intensity and row.time_ms and row.attainable_ms),
        key=lambda row: -row.time_ms,
    )
    marks = [_mark(rank, row) for rank, row in enumerate(ranked[:NUM_MARKS], 1)]
    if not marks:
        return None
    ceilings = _ceilings(run)
    intensities = _decades([*(mark.intensity for mark in marks), *(ceiling.ridge for ceiling in ceilings)])
    rates = _decades([*(mark.flop_s for mark in marks), *(ceiling.flop_s for ceiling in ceilings)])
    return Roofline(
        marks=marks,
        labels=_labels(marks[:NUM_LABELLED], len(intensities) - 1, len(rates) - 1),
        ceilings=ceilings,
        num_modules=len(ranked),
        marked_share=sum(mark.row.share for mark in marks),
        intensities=intensities,
        rates=rates,
    )


def _mark(rank: int, row: ModuleRow) -> Mark:
    reached = (row.achieved_tflops or 0.0) * 1e12
    return Mark(rank, row, row.intensity or 0.0, reached, row.model_flops / row.attainable_ms * 1e3)


def _ceilings(run: Run) -> list[Ceiling]:
    found, peak = [], run.peak
    for row in run.peaks:
        if row["used"]:
            bases = (("measured", peak["bandwidth_gb_s"]), ("datasheet", peak.get("datasheet_bandwidth_gb_s")))
            found += [
                Ceiling(basis, row["dtype"], row[f"{basis}_tflops"] * 1e12, gb_s)
                for basis, gb_s in bases
                if row[f"{basis}_tflops"] and gb_s
            ]
    return found


def _decades(values: Sequence[float]) -> list[float]:
    return [10.0**power for power in range(floor(log10(min(values))), floor(log10(max(values))) + 2)]


def _labels(marks: Sequence[Mark], decades_across: int, decades_up: int) -> list[tuple[Mark, list[int]]]:
    labels: list[tuple[Mark, list[int]]] = []
    for mark in marks:
        for other, ranks in labels:
            across = abs(log10(mark.intensity / other.intensity)) / decades_across
            if across < NEAR and abs(log10(mark.flop_s / other.flop_s)) / decades_up < NEAR:
                ranks.append(mark.rank)
                break
        else:
            labels.append((mark, [mark.rank]))
    return labels


@dataclass(frozen=True, slots=True)
class Segment:
    """One family of causes in a stack, between two places in it; ``wide`` where a name fits into it."""

    family: str
    ms: float
    share: float
    low_ms: float
    high_ms: float
    wide: bool


@dataclass(frozen=True, slots=True)
class Stack:
    """A run's step as families of causes in the ledger's order; what is below zero stacks to the left of it."""

    step_ms: float
    segments: list[Segment]

    @property
    def right_ms(self) -> float:
        """Where it ends; beyond the step's time if something is below zero."""
        return max((segment.high_ms for segment in self.segments), default=0.0)


@dataclass(frozen=True, slots=True)
class Stacks:
    """The steps of several runs, in the same milliseconds."""

    stacks: list[Stack]


def stacks(runs: Sequence[Run]) -> Stacks:
    """One stack a run."""
    longest = max(run.step["time_ms"]["median"] for run in runs)
    return Stacks([Stack(run.step["time_ms"]["median"], _segments(run, WIDE * longest)) for run in runs])


def _segments(run: Run, wide_ms: float) -> list[Segment]:
    totals: dict[str, float] = defaultdict(float)
    for line in run.ledger:
        totals[family_of(line.cause)] += line.ms
    reached = {True: 0.0, False: 0.0}  # to the right of zero, and to the left
    segments = []
    for family in sorted((family for family in totals if totals[family]), key=family_place):
        ms = totals[family]
        before, reached[ms > 0] = reached[ms > 0], reached[ms > 0] + ms
        low, high = sorted((before, reached[ms > 0]))
        segments.append(Segment(family, ms, ms / run.step["time_ms"]["median"], low, high, abs(ms) > wide_ms))
    return segments


@dataclass(frozen=True, slots=True)
class Dot:
    """A value of one series in one row, with its interval, which may have no width."""

    row: str
    series: str
    value: float
    low: float
    high: float
    about: str


@dataclass(frozen=True, slots=True)
class Dots:
    """Values with intervals, row by row: from zero on as percentages, or as ``ratios`` around 1, on a log axis."""

    title: str
    dots: list[Dot]
    ratios: bool

    @property
    def rows(self) -> list[str]:
        """The rows in the order in which they are drawn."""
        return list(dict.fromkeys(dot.row for dot in self.dots))

    @property
    def series(self) -> list[str]:
        """The series in the order in which they come first."""
        return list(dict.fromkeys(dot.series for dot in self.dots))


@dataclass(frozen=True, slots=True)
class Size:
    """One size of a series: what it computes, and a value with its interval, which may have no width."""

    name: str
    compute: float
    value: float
    low: float
    high: float
    about: str


@dataclass(frozen=True, slots=True)
class Law:
    """A value that falls by ``slope`` with each e-fold of compute, from ``value`` at ``compute``."""

    value: float
    slope: float
    compute: float

    def at(self, compute: float) -> float:
        """What it gives there."""
        return self.value - self.slope * log(compute / self.compute)


@dataclass(frozen=True, slots=True)
class Curve:
    """The sizes of one series, and the law that was fitted to them, if one was; ``about`` is in words what it says.

    Those that are ``joined`` have a line from each to the next in place of a law.
    """

    series: str
    sizes: list[Size]
    law: Law | None
    about: str
    joined: bool = False

    @property
    def line(self) -> list[tuple[float, float]]:
        """What is drawn through the sizes, (compute, value): a law ends where they do, beyond nothing was seen."""
        if self.joined:
            return [(size.compute, size.value) for size in self.sizes]
        computes = [size.compute for size in self.sizes]
        return [(end, self.law.at(end)) for end in (min(computes), max(computes))] if self.law and computes else []


@dataclass(frozen=True, slots=True)
class Level:
    """A value that something reaches without computing more: a horizontal line."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Curves:
    """Values against compute on a log axis, each curve over its own range.

    All of them lie within ``computes`` and ``values``. Levels too far away to be drawn to scale are ``above`` or
    ``below``. ``labels`` are the sizes that have room for their name.
    """

    title: str
    of_compute: str
    curves: list[Curve]
    levels: list[Level]
    above: list[Level]
    below: list[Level]
    labels: list[Size]
    computes: tuple[float, float]
    values: tuple[float, float]

    @property
    def ticks(self) -> list[float]:
        """Places on the axis of compute: decades, and between them where they are few."""
        low, high = map(log10, self.computes)
        first, last = floor(low), floor(high)
        between = (1, 2, 5) if high - low < MANY_DECADES else (1,)
        ticks = [times * 10.0**power for power in range(first, last + 1) for times in between]
        return [tick for tick in ticks if self.computes[0] <= tick <= self.computes[1]]


def curves(title: str, of_compute: str, given: Sequence[Curve], levels: Sequence[Level]) -> Curves | None:
    """The curves that have sizes, with the levels around them; None without any."""
    drawn = [curve for curve in given if curve.sizes]
    if not drawn:
        return None
    sizes = [size for curve in drawn for size in curve.sizes]
    seen = [*(end for size in sizes for end in (size.low, size.high)), *(y for curve in drawn for _, y in curve.line)]
    low, high = min(seen), max(seen)
    reach = REACH * (high - low)
    near = sorted((lv for lv in levels if low - reach <= lv.value <= high + reach), key=lambda level: -level.value)
    computes = _around([log10(size.compute) for size in sizes], LEAST_DECADES)
    values = _around([low, high, *(level.value for level in near)], abs(high) / 100)
    return Curves(
        title=title,
        of_compute=of_compute,
        curves=drawn,
        levels=near,
        above=[level for level in levels if level.value > high + reach],
        below=[level for level in levels if level.value < low - reach],
        labels=_named_sizes(sizes, computes, values),
        computes=(10.0 ** computes[0], 10.0 ** computes[1]),
        values=values,
    )


def _around(values: Sequence[float], least: float) -> tuple[float, float]:
    """A range around ``values`` with room on either side, also where they do not differ."""
    low, high = min(values), max(values)
    lacking = max(0.0, least - (high - low)) / 2
    room = lacking + ROOM * (high - low)
    return (low - room, high + room) if room else (low - 1, high + 1)


def _named_sizes(sizes: Sequence[Size], computes: tuple[float, float], values: tuple[float, float]) -> list[Size]:
    """Sizes whose name, above their mark to the right, meets no mark, no other name and not the end."""

    def place(size: Size) -> tuple[float, float]:
        across = (log10(size.compute) - computes[0]) / (computes[1] - computes[0])
        return across, (size.value - values[0]) / (values[1] - values[0])

    def end(size: Size) -> float:
        return place(size)[0] + NEAR / 2 + LETTER * len(size.name)

    def beside(size: Size, other: Size, ends: float, higher: float) -> bool:
        """Whether ``size``'s name meets what reaches from ``other``'s mark to ``ends``, ``higher`` than the mark."""
        (x, y), (there, up) = place(size), place(other)
        return abs(y + NEAR / 2 - up - higher) < NEAR and there <= end(size) and x <= ends

    found: list[Size] = []
    for size in sizes:
        others = [other for other in sizes if other is not size]
        is_free = not any(beside(size, other, place(other)[0], 0.0) for other in others)
        if end(size) <= 1 and is_free and not any(beside(size, other, end(other), NEAR / 2) for other in found):
            found.append(size)
    return found


Figure = Waterfall | Roofline | Stacks | Dots | Curves
