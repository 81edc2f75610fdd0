"""One run as a page: its verdict, what bounds it, and the sections in reading order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mfubench.figures import Roofline, Waterfall, roofline, waterfall
from mfubench.run import LedgerLine, ModuleRow, Run

from . import format as fmt
from .blocks import Block, Chart, Column, Facts, Items, Page, Section, Table
from .causes import meanings
from .device import counters, peaks
from .ranks import ranks_section
from .tree import module_tree
from .verdict import fed, headline, latency, of_requests, step_time, throughput, why_no_mfu

FLOPS = {
    "model": "Model FLOPs a step",
    "fwd_model": "of these forward",
    "bwd_model": "of these backward",
    "counts_agree": "Count and closed form agree",
    "padded": "Padded FLOPs a step",
    "hardware": "Hardware FLOPs a step",
    "recomputed": "of these recomputed",
}

NUM_NAMED = 3  # of the largest losses, in a sentence
PER_REQUEST = {"per_request": "Model FLOPs a request", "per_candidate": "Model FLOPs a candidate"}


def run_page(run: Run) -> Page:
    """Everything that a report says about ``run``."""
    fall = waterfall(run)
    impls = Facts(sorted(run.impls.items())) if run.impls else Items(["No op of ours."])
    sections = [
        Section("MFU and HFU", [_utilization(run), _flops(run), *peaks(run)]),
        Section(
            "MFU loss ledger", [*waterfall_chart("MFU waterfall", fall), ledger_table(run.ledger, fall)], brief=True
        ),
        Section("Hotspots", [_hotspots(run.hotspots)], brief=True),
        *ranks_section(run),
        Section("Modules", [*module_tree(run), _modules(run)], brief=True),
        Section("Module rooflines", _rooflines(run)),
        Section("Memory", [_memory(run.memory)]),
        Section("Device counters (NVML)", counters(run.nvml)),
        Section("Trace", [_trace(run.trace)]),
        Section("Not measured", [Items(run.not_measured or ["Nothing was left out."])]),
        Section("Workload", [Facts.of(run.workload)]),
        Section("Implementations that ran", [impls, *_configs(run)]),
        Section("Environment", [Facts.of(run.environment)]),
        Section("Method", [Facts([("FLOP convention", run.flop_convention), *meanings(run.ledger)])]),
    ]
    return Page(run.title, headline(run), run.warnings, sections)


def _configs(run: Run) -> list[Table]:
    """The configs of our kernels, where some were launched."""
    rows = run.kernel_configs
    if not rows:
        return []
    return [
        Table.of(
            "The config of each kernel of ours, by what it depends on, and where that comes from. "
            "`mfubench kernels tune` looks for a faster one.",
            [
                (Column("kernel"), [row.kernel for row in rows]),
                (Column("key"), [row.key for row in rows]),
                (Column("config"), [row.config for row in rows]),
                (Column("origin"), [row.origin for row in rows]),
            ],
        )
    ]


def _utilization(run: Run) -> Facts:
    why = why_no_mfu(run)
    return Facts(
        [
            ("MFU", fmt.percent(run.mfu, why)),
            ("HFU", fmt.percent(run.hfu, why)),
            ("MFU of the measured GEMM peak", fmt.percent(run.mfu_of_measured_peak)),
            ("HFU of the measured GEMM peak", fmt.percent(run.hfu_of_measured_peak)),
            ("Step time", f"{step_time(run, 'ms')}, median and 95 % interval of {len(run.step['timings_ms'])} steps"),
            *_latency(run),
            ("Throughput", throughput(run)),
            *([("Fed by its loader", told)] if (told := fed(run)) else []),
        ]
    )


def _latency(run: Run) -> list[tuple[str, str]]:
    told, steps = latency(run), len(run.step["timings_ms"])
    missing = [share for share, ms in (run.step.get("latency_ms") or {}).items() if ms is None]
    needed = round(100 / (100 - float(missing[0]))) if missing else 0
    more = f"; {missing[0]} % needs --steps {needed}" if missing else ""
    return [("Latency", f"{told}, of {steps} steps of which each was waited for{more}")] if told else []


def _flops(run: Run) -> Facts:
    flops = run.flops
    known = FLOPS | (PER_REQUEST if of_requests(run) else {})
    coverage = (
        f"{fmt.percent(flops['coverage'])} of the device time; unknown ops: {fmt.value('', flops['unknown_ops'])}"
    )
    return Facts(
        [
            *((words, _flops_or_other(key, flops[key])) for key, words in known.items() if key in flops),
            ("FLOP coverage", coverage),
        ]
    )


def _flops_or_other(key: str, given: Any) -> str:
    return fmt.flops(given) if type(given) in (int, float) else fmt.value(key, given)


def waterfall_chart(title: str, fall: Waterfall) -> list[Chart]:
    """The chart of ``fall``; none where nothing is known of the step."""
    if not fall.drops:
        return []
    largest = ", ".join(f"{drop.line.cause} {fmt.percent(drop.line.share)}" for drop in fall.largest(NUM_NAMED))
    summary = (
        f"From 100 % of the {fall.step} down to {fmt.percent(fall.useful)} that is useful, the MFU of that step "
        f"against the peak in use. The largest losses: {largest}."
    )
    return [Chart(title, summary, fall)]


def ledger_table(lines: Sequence[LedgerLine], fall: Waterfall) -> Table:
    """The lines of a ledger, and what each leaves of the step."""
    *ms, all_ms = fmt.column([*(line.ms for line in lines), sum(line.ms for line in lines)], digits=4)
    *left, useful = fmt.percents([*(drop.left for drop in fall.drops), fall.useful])
    left_by_cause = dict(zip((drop.line.cause for drop in fall.drops), left, strict=True))
    *shares, all_shares = fmt.percents([*(line.share for line in lines), sum(line.share for line in lines)])
    table = Table.of(
        "The causes of the step time, in the order in which they are accounted; they add up to it.",
        [
            (Column("cause"), [line.cause for line in lines]),
            (Column("ms", numeric=True), ms),
            (Column("share %", numeric=True, bar=True), shares),
            (Column("left %", numeric=True, brief=False), [left_by_cause.get(line.cause, "") for line in lines]),
            (Column("top modules"), [", ".join(line.modules) for line in lines]),
        ],
    )
    return replace(table, total=["total", all_ms, all_shares, useful, ""])


def _hotspots(spots: list[dict[str, Any]]) -> Block:
    if not spots:
        return Items(["None found."])

    def texts(key: str) -> tuple[Column, list[str]]:
        return Column(key), [str(spot[key]) for spot in spots]

    return Table.of(
        "Where time can be won back, and how much of it at most. Mostly in: the operators that take most of it.",
        [
            texts("module"),
            texts("cause"),
            (Column("module ms", numeric=True), fmt.column([spot["time_ms"] for spot in spots])),
            (Column("ms to win", numeric=True), fmt.column([spot["won_ms"] for spot in spots])),
            (Column("mostly in"), [", ".join(spot.get("operators", ())) for spot in spots]),
            texts("advice"),
        ],
        rest="hotspots",
    )


def _modules(run: Run) -> Table:
    rows = run.modules

    def numbers(header: str, key: str, unit: float = 1, brief: bool = False) -> tuple[Column, list[str]]:
        return Column(header, numeric=True, brief=brief), fmt.column(run.of_modules(key), unit=unit)

    return Table.of(
        "Each module's own work, its children's not included, the longest first. "
        f"MFU is against the peak in use ({run.peak['in_use']}, {run.peak['dtype']}).",
        [
            (Column("module"), [row.name for row in rows]),
            (Column("type", brief=False), [row.type for row in rows]),
            numbers("ms", "time_ms", brief=True),
            numbers("forward ms", "fwd_time_ms"),
            numbers("backward ms", "bwd_time_ms"),
            (Column("share %", numeric=True, bar=True), fmt.percents(run.of_modules("share"))),
            numbers("forward model GFLOP", "fwd_model_flops", fmt.GIGA),
            numbers("backward model GFLOP", "bwd_model_flops", fmt.GIGA),
            (Column("MFU %", numeric=True), fmt.percents([row.mfu for row in rows])),
            (Column("verdict"), [row.verdict for row in rows]),
            numbers("memory MiB", "memory_bytes", fmt.MEBI, brief=True),
        ],
        rest="modules",
    )


def _rooflines(run: Run) -> list[Block]:
    figure = roofline(run)
    rows = run.modules
    ranks = {mark.row.name: str(mark.rank) for mark in figure.marks} if figure else {}

    def numbers(header: str, values: list[float | None], unit: float = 1) -> tuple[Column, list[str]]:
        return Column(header, numeric=True), fmt.column(values, unit=unit)

    table = Table.of(
        "Attainable is what the measured roofline allows for the useful work and the least bytes, FLOP/byte the model "
        "FLOPs for each of these; of (optimizer) it is the least that an update must move. Kept is what the forward "
        "made and the backward still needs. Why: the causes of a module's time that its verdict rests on, in ms. Mark: "
        "its number in the chart.",
        [
            (Column("module"), [row.name for row in rows]),
            (Column("mark", numeric=True), [ranks.get(row.name, "") for row in rows]),
            numbers("ms", run.of_modules("time_ms")),
            numbers("attainable ms", [row.attainable_ms for row in rows]),
            numbers("model GFLOP", [row.model_flops for row in rows], fmt.GIGA),
            numbers("least MB", [row.bytes for row in rows], fmt.MEGA),
            numbers("FLOP/byte", [row.intensity for row in rows]),
            numbers("GFLOP/s", [row.achieved_tflops for row in rows], fmt.GIGA / fmt.TERA),
            (Column("verdict"), [row.verdict for row in rows]),
            (Column("why, ms"), [_why(row) for row in rows]),
            numbers("peak MiB", run.of_modules("memory_bytes"), fmt.MEBI),
            numbers("kept MiB", run.of_modules("activation_bytes"), fmt.MEBI),
        ],
        rest="modules",
    )
    return [*([_roofline_chart(figure)] if figure else []), table]


def _roofline_chart(figure: Roofline) -> Chart:
    longest = figure.marks[0]
    summary = (
        f"The {len(figure.marks)} longest of {figure.num_modules} modules with model FLOPs, "
        f"{fmt.percent(figure.marked_share)} of the step; a mark's area is its share. The longest, {longest.row.name}, "
        f"reaches {fmt.flops(longest.flop_s)}/s of {fmt.flops(longest.attainable_flop_s)}/s attainable."
    )
    return Chart("Roofline of the modules", summary, figure)


def _why(row: ModuleRow) -> str:
    causes = sorted((cause for cause in row.causes if row.causes[cause]), key=lambda cause: -abs(row.causes[cause]))
    return ", ".join(f"{cause} {fmt.number(row.causes[cause])}" for cause in causes[:NUM_NAMED])


def _memory(memory: dict[str, Any]) -> Facts:
    seen = memory["device_peak_bytes"]
    told = fmt.not_known("a CPU reports none") if seen is None else fmt.size(seen)
    return Facts([*memory_facts(memory), ("Peak that the device reports", told)])


def memory_facts(memory: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The peak of a step's memory, and what it was made of."""
    return [
        ("Peak", f"{fmt.size(memory['peak_bytes'])}, reached in {memory['phase']}"),
        *((fmt.label(kind).capitalize(), fmt.size(amount)) for kind, amount in memory["by_kind"].items()),
    ]


def _trace(trace: dict[str, Any]) -> Facts:
    return Facts(
        [
            ("Traced steps", str(trace["steps"])),
            ("Distortion", f"{fmt.number(trace['distortion'])} times the timed step, to which it is scaled"),
            ("Attributed to modules", f"{fmt.percent(trace['attributed_share'])} of the traced time"),
            ("Chrome trace", str(trace["path"] or "not kept")),
        ]
    )
