"""What a performance gate found as a page: the verdict in a sentence, the rows behind it, the time as a forest plot.

``told`` is the gate's document as JSON; `mfubench.report.ci` renders the same one for a CI service.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mfubench.figures import Dot, Dots
from mfubench.gate.policy import ABSOLUTE
from mfubench.gate.rows import VERDICTS, Row

from . import format as fmt
from .blocks import Block, Chart, Column, Facts, Items, Page, Section, Table, known

Document = Mapping[str, Any]
DOCUMENT = "gate.json"  # what the document is called where it is written
MOST_ROWS = 400  # of one table, wherever it is shown
NUM_NAMED = 3  # of the benchmarks, in a sentence
# After a number: of one row, of several.
SAID = {
    "FAIL": ("fails", "fail"),
    "ERROR": ("could not be looked at",) * 2,
    "INCONCLUSIVE": ("undecided",) * 2,
    "ENVIRONMENT": ("slower with the same code",) * 2,
    "NO_BASELINE": ("without a baseline",) * 2,
    "CHANGED": ("changed",) * 2,
    "IMPROVED": ("improved",) * 2,
    "PASS": ("passes", "pass"),
}
TIERS = {
    "model": ("count of a model", "counts of models"),
    "kernels": ("of a compiled kernel", "of compiled kernels"),
    "time": ("step time", "step times"),
}


def gate_page(told: Document) -> Page:
    """Everything that a report says about a gate, whether it measured time or not."""
    told = fmt.cleaned(told)
    rows = rows_of(told)
    timings = timings_of(told)
    passed = [row for row in rows if _is_passed_over(row)]
    meanings: list[tuple[str, str]] = [item for item in VERDICTS.items() if item[0] in told["counted"]]
    sections = [Section("Verdict", _verdict(rows), brief=True)]
    if timings:
        sections.append(Section("Time", [*forest(timings), _times(timings)], brief=True))
        sections.append(Section("Every pair of processes", [_pairs(timings)]))
    if passed:
        blocks = [*listed(passed, "What did not become worse than it may."), *where_table(passed[:MOST_ROWS])]
        sections.append(Section("Within their limits", blocks))
    return Page(
        title=f"Performance gate: {told['head']['given']} against {told['base']['given']}",
        headline=headline(told),
        warnings=told["warnings"],
        sections=[
            *sections,
            Section("What was compared", [compared(told), Facts.of(told["environment"])]),
            Section("Method and notes", [Items(method(told)), Facts(meanings)]),
        ],
    )


def rows_of(told: Document) -> list[Row]:
    """The document's rows, the worst first."""
    return [Row.of_json(row) for row in told["rows"]]


def timings_of(told: Document) -> list[dict[str, Any]]:
    """The document's timings, the worst first, each with the verdict of its row, which may have been waived since."""
    verdicts = {row.benchmark: row.counts for row in rows_of(told) if row.tier == "time"}
    timings = [timing | {"verdict": verdicts[timing["benchmark"]]} for timing in told["timings"]]
    return sorted(timings, key=lambda timing: list(VERDICTS).index(timing["verdict"]))


def headline(told: Document) -> str:
    """The verdict, the worst row, and how many rows there are of each verdict, in a sentence of one line."""
    rows, verdict = rows_of(told), told["verdict"]
    if not rows:
        said = "nothing was looked at"
    elif verdict == "PASS":
        tiers = Counter(row.tier for row in rows)
        said = f"{_things(len(rows))} within {'its limit' if len(rows) == 1 else 'their limits'} ({_by_tier(tiers)})"
    else:
        said = f"{_in_words(rows[0])}; {counted(told['counted'])}"
    return " ".join(f"{verdict}: {said}".split())


def _things(number: int) -> str:
    return "1 thing" if number == 1 else f"{fmt.count(number)} things"


def _by_tier(tiers: Mapping[Any, int]) -> str:
    return ", ".join(
        f"{fmt.count(tiers[tier])} {words[tiers[tier] != 1]}" for tier, words in TIERS.items() if tiers.get(tier)
    )


def _in_words(row: Row) -> str:
    """The row in half a sentence; what has no ratio says why instead."""
    thing = f"{metric(row)} {'in' if row.subject else 'of'} {row.benchmark}"
    if row.ratio is None:
        return ": ".join([thing, *row.why.splitlines()[:1]])
    limit = "" if row.margin is None else f", allowed {allowed(row.metric, row.margin)}"
    return f"{thing} {_ratio(row.ratio)} times base's{limit}"


def counted(counts: Mapping[str, int]) -> str:
    """How many rows have each verdict: ``1 fails, 2 changed, 20 pass``."""
    return ", ".join(f"{fmt.count(number)} {SAID[verdict][number != 1]}" for verdict, number in counts.items())


def metric(row: Row) -> str:
    """What a row is about, in words, without its benchmark."""
    return f"{fmt.words(row.metric)} of {row.subject}" if row.subject else fmt.words(row.metric)


def allowed(name: str, margin: float | None) -> str:
    """How much head may have of a metric: ``1.03 times``, or ``8 more``."""
    if margin is None:
        return fmt.NOT_KNOWN
    if not margin:
        return "no more"
    return f"{margin:g} more" if name in ABSOLUTE else f"{1 + margin:.6g} times"


def explained(row: Row) -> str:
    """Why a row has its verdict, what in the model makes the difference, and until when that is waived."""
    return _why(row, row.explanation)


def _why(row: Row, reason: str) -> str:
    return "; ".join(part for part in (row.waived and f"waived {row.waived}", reason) if part)


def _verdict(rows: Sequence[Row]) -> list[Block]:
    """The rows that a reader has to see; how many more are as they should be."""
    shown = [row for row in rows if not _is_passed_over(row)]
    tiers = Counter(row.tier for row in rows if _is_passed_over(row))
    blocks = listed(shown, "Head beside base, the worst first. In brackets the 95 % interval of what was measured.")
    blocks += where_table(shown[:MOST_ROWS])
    if tiers:
        blocks.append(Items([f"{'And w' if shown else 'W'}ithin their limits: {_by_tier(tiers)}."]))
    return blocks or [Items(["There was nothing to look at."])]


def _is_passed_over(row: Row) -> bool:
    """Whether it is one of the many exact things that are no worse than they may be."""
    return row.counts == "PASS" and row.tier != "time"


def listed(rows: Sequence[Row], caption: str) -> list[Block]:
    """The first rows as a table, and how many more there are where a page would drown in them."""
    if not rows:
        return []
    more = len(rows[MOST_ROWS:])
    after: list[Block] = [Items([f"{fmt.more(more, 'rows')}; {DOCUMENT} lists them all."])] if more else []
    return [rows_table(rows[:MOST_ROWS], caption), *after]


def rows_table(rows: Sequence[Row], caption: str) -> Table:
    """Rows of the gate as a table, without the columns that say nothing."""
    # What is no number may be long, and only text is folded.
    numeric = not any(isinstance(value, str) for row in rows for value in (row.base, row.head))
    verdicts: list[str] = [row.counts for row in rows]
    columns = [
        (Column("verdict"), verdicts),
        (Column("benchmark"), [row.benchmark for row in rows]),
        (Column("metric"), [metric(row) for row in rows]),
        (Column("base", numeric=numeric), [_value(row.base, row.unit) for row in rows]),
        (Column("head", numeric=numeric), [_value(row.head, row.unit) for row in rows]),
        (Column("ratio [95 % CI]", numeric=True), [_ratio(row.ratio) for row in rows]),
        (Column("allowed", brief=False), [allowed(row.metric, row.margin) for row in rows]),
        (Column("why"), [_why(row, row.why) for row in rows]),
    ]
    filled = [(column, cells) for column, cells in known(columns) if any(cells)]
    return replace(Table.of(caption, filled, rest="rows"), listed_in=DOCUMENT)


def where_table(rows: Sequence[Row]) -> list[Table]:
    """What in the model makes the differences of these rows, a line a row; nothing where none is a model's count."""
    located = [row for row in rows if row.where]
    if not located:
        return []
    columns = [
        (Column("benchmark"), [row.benchmark for row in located]),
        (Column("metric"), [metric(row) for row in located]),
        (Column("where head needs more or less"), [row.located for row in located]),
    ]
    caption = "The largest differences by module and class of operator; * is the number of a module in a list."
    return [replace(Table.of(caption, columns, rest="rows"), listed_in=DOCUMENT)]


def _value(given: float | str | None, unit: str) -> str:
    match given:
        case None | str():
            return fmt.NOT_KNOWN if given is None else given
        case _ if unit in ("B", "FLOP"):
            return fmt.size(given) if unit == "B" else fmt.flops(given)
        case float() if not given.is_integer():
            text = fmt.number(given, 4)
        case _:
            text = fmt.count(int(given))
    return f"{text} {unit}" if unit else text


def _ratio(ratio: Sequence[float] | None) -> str:
    """With its interval, unless it is exact."""
    if ratio is None:
        return fmt.NOT_KNOWN
    middle, low, high = ratio
    return fmt.number(middle, 4) if low == high else fmt.interval(middle, low, high)


def forest(timings: Sequence[Document]) -> list[Chart]:
    """The ratio of each benchmark beside what noise alone makes of base; none where nothing was decided."""
    dots = []
    for timing in timings:
        row = f"{timing['benchmark']}: {timing['verdict']}"
        for series, key in (("head against base", "ratio"), ("base against itself", "against_itself")):
            # Of few pairs the interval may have no end, and an axis has no place for that.
            if timing[key] and all(0 < end < math.inf for end in timing[key]):
                middle, low, high = timing[key]
                about = f"{timing['benchmark']}, {series}: {_ratio(timing[key])}"
                dots.append(Dot(row, series, middle, low, high, about))
    if not dots:
        return []
    first = [f"{timing['benchmark']} {_ratio(timing['ratio'])}" for timing in timings[:NUM_NAMED]]
    rest = [f"and {fmt.count(len(timings[NUM_NAMED:]))} more"] if timings[NUM_NAMED:] else []
    summary = (
        "Step time over base's with its 95 % interval, and base's over its own, from the same run, which is what "
        f"noise alone does. {', '.join([*first, *rest])}."
    )
    return [Chart("Step time against base's", summary, Dots("times base's step time", dots, ratios=True))]


def _times(timings: Sequence[Document]) -> Table:
    return Table.of(
        "The median step and its 95 % interval. The noise floor is base's step time over its own.",
        [
            (Column("benchmark"), [timing["benchmark"] for timing in timings]),
            (Column("verdict", brief=False), [timing["verdict"] for timing in timings]),
            (Column("base's step", numeric=True), [_step(timing["base_ms"], timing["unit"]) for timing in timings]),
            (Column("head's step", numeric=True), [_step(timing["head_ms"], timing["unit"]) for timing in timings]),
            (Column("ratio [95 % CI]", numeric=True), [_ratio(timing["ratio"]) for timing in timings]),
            (Column("allowed", brief=False), [allowed("step_time", timing["margin"]) for timing in timings]),
            (Column("noise floor", numeric=True), [_ratio(timing["against_itself"]) for timing in timings]),
            (Column("pairs of processes", numeric=True), [fmt.count(timing["pairs"]) for timing in timings]),
        ],
    )


def _step(time: Sequence[float] | None, unit: str) -> str:
    if time is None:
        return fmt.NOT_KNOWN
    middle, low, high = time
    return fmt.interval(middle, low, high, unit)


def _pairs(timings: Sequence[Document]) -> Table:
    ratios = [", ".join(fmt.column(timing["ratios_of_pairs"], digits=4)) or "none" for timing in timings]
    return Table.of(
        "Step time over base's in each pair of processes, in the order in which they ran. In a pair, both take turns, "
        "block by block.",
        [
            (Column("benchmark"), [timing["benchmark"] for timing in timings]),
            (Column("ratios"), ratios),
            (Column("blocks a pair", numeric=True), [fmt.count(timing["blocks_a_pair"]) for timing in timings]),
        ],
    )


def compared(told: Document) -> Facts:
    """Base, head, what kernels were compiled with and for, and the policy."""
    toolchain = ", ".join(f"{name} {version}" for name, version in told["toolchain"].items())
    policy = told["policy"]
    waived = [f"{waiver['row']} until {waiver['until']}: {waiver['reason']}" for waiver in policy["waivers"]]
    return Facts(
        [
            ("Base", _side(told["base"])),
            ("Head", _side(told["head"])),
            *((name, _workload(workload)) for name, workload in told["workloads"].items()),
            ("Kernels compiled for", ", ".join(told["targets"]) or "no target"),
            *([("Kernels compiled with", toolchain)] if toolchain else []),
            ("Limits", f"of {policy['file']}, the rest by default" if policy["file"] else "by default"),
            *((f"Allowed of {fmt.words(name)}", allowed(name, limit)) for name, limit in policy["limits"].items()),
            *(("Waived", waiver) for waiver in waived),
        ]
    )


def _workload(workload: Document) -> str:
    """What was counted, and what kernels were compiled with, if any were."""
    said = (
        f"{fmt.count(workload['batch_size'])} requests a step, {workload['mode']}, counted in {workload['dtype']} on "
        f"{workload['device']}"
    )
    kernels = [f"{count} on {target}" for target, count in workload["kernels"].items()]
    return f"{said}; kernels, in {workload['kernels_dtype']}: {', '.join(kernels)}" if kernels else said


def _side(side: Document) -> str:
    parts = [side["given"], f"commit {side['commit']}" if side["commit"] else "no commit"]
    parts += ["with changes that are not committed"] if side["dirty"] else []
    return ", ".join(parts + ([f"in {side['folder']}"] if side["folder"] else []))


def method(told: Document) -> list[str]:
    """How it was decided, and what there is to say besides."""
    made = [f"Made by: {told['command_line']}"] if told.get("command_line") else []
    return [told["method"], *told["notes"], *made]


def self_check_page(told: Document) -> Page:
    """How often the gate of this machine errs, and how small a change it can tell."""
    told = fmt.cleaned(told)
    slower, trials = f"{fmt.percent(told['injected'])} slower", fmt.count(told["trials"])
    smallest = told["smallest_change"]
    least = fmt.not_known("no change that was tried") if smallest is None else fmt.percent(smallest)
    facts = [
        ("Measured: equal code", _ratio(told["noise"])),
        (f"Measured: a step that is {slower}", _ratio(told["found"])),
        ("Equal code fails: cries wolf", fmt.percent(told["false_alarms"])),
        ("Equal code stays undecided", fmt.percent(told["undecided_equal"])),
        (f"A step that is {slower} fails: caught", fmt.percent(told["detected"])),
        (f"A step that is {slower} passes: missed", fmt.percent(told["missed"])),
        (f"A step that is {slower} stays undecided", fmt.percent(told["undecided_slower"])),
        ("Smallest change that it can tell", least),
        ("Allowed of step time", allowed("step_time", told["margin"])),
        ("Pairs of processes measured", fmt.count(told["pairs"])),
        ("Pairs needed on average, equal code", fmt.number(told["pairs_used_equal"], 2)),
        (f"Pairs needed on average, {slower}", fmt.number(told["pairs_used_slower"], 2)),
        ("Gates tried", f"{trials} of each kind"),
    ]
    return Page(
        title=f"Performance gate: what it can tell on this machine, by {told['benchmark']}",
        headline=(
            f"This machine's gate would cry wolf in {fmt.percent(told['false_alarms'])} of runs on equal code, and "
            f"catch a step that is {slower} in {fmt.percent(told['detected'])}; the smallest change that it can tell: "
            f"{least}"
        ),
        warnings=told.get("warnings", []),
        sections=[
            Section("What it can tell", [Facts(facts)], brief=True),
            Section("Method", [Items([told["method"]])]),
            Section("Environment", [Facts.of(told["environment"])]),
        ],
    )
