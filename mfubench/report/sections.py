"""One run as a page: its verdict, what bounds it, and the sections in reading order."""

from dataclasses import replace
from typing import Any

from mfubench.run import Run

from . import format as fmt
from .blocks import Block, Column, Facts, Items, Page, Section, Table
from .causes import meanings
from .verdict import headline, of_requests, step_time, throughput, why_no_mfu

FLOPS = {
    "model": "Model FLOPs a step",
    "fwd_model": "of these forward",
    "bwd_model": "of these backward",
    "closed_form": "Model FLOPs in closed form",
    "counts_agree": "Count and closed form agree",
    "padded": "Padded FLOPs a step",
    "hardware": "Hardware FLOPs a step",
    "recomputed": "of these recomputed",
}

PER_REQUEST = {"per_request": "Model FLOPs a request", "per_candidate": "Model FLOPs a candidate"}


def run_page(run: Run) -> Page:
    """Everything that a report says about ``run``."""
    impls = Facts(sorted(run.impls.items())) if run.impls else Items(["No op of ours."])
    sections = [
        Section("MFU and HFU", [_utilization(run), _flops(run), _peaks(run)]),
        Section("MFU loss ledger", [_ledger(run)], brief=True),
        Section("Hotspots", [_hotspots(run.hotspots)]),
        Section("Modules", [_modules(run)], brief=True),
        Section("Module rooflines", [_rooflines(run)]),
        Section("Memory", [_memory(run.memory)]),
        Section("Device counters (NVML)", _nvml(run.nvml)),
        Section("Trace", [_trace(run.trace)]),
        Section("Not measured", [Items(run.not_measured or ["Nothing was left out."])]),
        Section("Workload", [_facts(run.workload)]),
        Section("Implementations that ran", [impls]),
        Section("Environment", [_facts(run.environment)]),
        Section("Method", [Facts([("FLOP convention", run.flop_convention), *meanings(run.ledger)])]),
    ]
    return Page(run.title, headline(run), run.warnings, sections)


def _utilization(run: Run) -> Facts:
    why = why_no_mfu(run)
    return Facts(
        [
            ("MFU", fmt.percent(run.mfu, why)),
            ("HFU", fmt.percent(run.hfu, why)),
            ("MFU of the measured GEMM peak", fmt.percent(run.mfu_of_measured_peak)),
            ("HFU of the measured GEMM peak", fmt.percent(run.hfu_of_measured_peak)),
            ("Step time", f"{step_time(run, 'ms')}, median and 95 % interval of {len(run.step['timings_ms'])} steps"),
            ("Throughput", throughput(run)),
        ]
    )


def _flops(run: Run) -> Facts:
    flops = run.flops
    known = FLOPS | (PER_REQUEST if of_requests(run) else {})
    rest = [key for key in flops if key not in {*FLOPS, *PER_REQUEST, "coverage", "unknown_ops"}]
    coverage = (
        f"{fmt.percent(flops['coverage'])} of the device time; unknown ops: {fmt.value('', flops['unknown_ops'])}"
    )
    return Facts(
        [
            *((words, _flops_or_other(key, flops[key])) for key, words in known.items() if key in flops),
            *((fmt.label(key).capitalize(), _flops_or_other(key, flops[key])) for key in rest),
            ("FLOP coverage", coverage),
        ]
    )


def _flops_or_other(key: str, given: Any) -> str:
    return fmt.flops(given) if type(given) in (int, float) else fmt.value(key, given)


def _peaks(run: Run) -> Facts:
    peak = run.peak
    sheet = f"{fmt.number(peak['datasheet_tflops'])} TFLOP/s, dense ({peak['source']})"
    how = "".join(f"; {peak[key]}" for key in ("measured_how",) if key in peak)
    return Facts(
        [
            ("Peak in use", f"{peak['in_use']}, {peak['dtype']}"),
            ("Datasheet peak", sheet if peak["datasheet_tflops"] else fmt.not_known(why_no_mfu(run))),
            ("Measured GEMM peak", f"{fmt.number(peak['measured_tflops'])} TFLOP/s"),
            ("Measured copy bandwidth", f"{fmt.number(peak['bandwidth_gb_s'])} GB/s"),
            ("Measured", f"{peak['measured_date']}{how}"),
        ]
    )


def _ledger(run: Run) -> Table:
    lines = run.ledger
    *ms, all_ms = fmt.column([*(line.ms for line in lines), sum(line.ms for line in lines)], digits=4)
    *shares, all_shares = fmt.percents([*(line.share for line in lines), sum(line.share for line in lines)])
    table = Table.of(
        "The causes of the step time, in the order in which they are accounted; they add up to it.",
        [
            (Column("cause"), [line.cause for line in lines]),
            (Column("ms", numeric=True), ms),
            (Column("share %", numeric=True, bar=True), shares),
            (Column("top modules"), [", ".join(line.modules) for line in lines]),
        ],
    )
    return replace(table, total=["total", all_ms, all_shares, ""])


def _hotspots(spots: list[dict[str, Any]]) -> Block:
    if not spots:
        return Items(["None found."])

    def texts(key: str) -> tuple[Column, list[str]]:
        return Column(key), [str(spot[key]) for spot in spots]

    return Table.of(
        "Where time can be won back, and how much of it the advice can win at most.",
        [
            *(texts(key) for key in ("module", "phase", "cause") if key in spots[0]),
            (Column("ms", numeric=True), fmt.column([spot["time_ms"] for spot in spots])),
            (Column("ms to win", numeric=True), fmt.column([spot["won_ms"] for spot in spots])),
            texts("advice"),
        ],
        rest="hotspots",
    )


def _modules(run: Run) -> Table:
    rows = sorted(run.modules, key=lambda row: row.time_ms, reverse=True)

    def numbers(header: str, key: str, unit: float = 1, brief: bool = False) -> tuple[Column, list[str]]:
        return Column(header, numeric=True, brief=brief), fmt.column([getattr(row, key) for row in rows], unit=unit)

    return Table.of(
        "Each module's own work, its children's not included, the longest first. "
        f"MFU is against the peak in use ({run.peak['in_use']}, {run.peak['dtype']}).",
        [
            (Column("module"), [row.name for row in rows]),
            (Column("type", brief=False), [row.type for row in rows]),
            numbers("ms", "time_ms", brief=True),
            numbers("forward ms", "fwd_time_ms"),
            numbers("backward ms", "bwd_time_ms"),
            (Column("share %", numeric=True, bar=True), fmt.percents([row.share for row in rows])),
            numbers("forward model GFLOP", "fwd_model_flops", fmt.GIGA),
            numbers("backward model GFLOP", "bwd_model_flops", fmt.GIGA),
            (Column("MFU %", numeric=True), fmt.percents([row.mfu for row in rows])),
            (Column("verdict"), [row.verdict for row in rows]),
            numbers("memory MiB", "memory_bytes", fmt.MEBI, brief=True),
        ],
        rest="modules",
    )


def _rooflines(run: Run) -> Table:
    rows = sorted(run.modules, key=lambda row: row.time_ms, reverse=True)
    return Table.of(
        "Attainable is what the measured roofline allows for the useful work and the least bytes, FLOP/byte the model "
        "FLOPs for each of these; activations are what the forward made and the backward still needs.",
        [
            (Column("module"), [row.name for row in rows]),
            (Column("ms", numeric=True), fmt.column([row.time_ms for row in rows])),
            (Column("attainable ms", numeric=True), fmt.column([row.attainable_ms for row in rows])),
            (Column("FLOP/byte", numeric=True), fmt.column([row.intensity for row in rows])),
            (
                Column("activations MiB", numeric=True),
                fmt.column([row.activation_bytes for row in rows], unit=fmt.MEBI),
            ),
        ],
        rest="modules",
    )


def _memory(memory: dict[str, Any]) -> Facts:
    seen = memory["device_peak_bytes"]
    return Facts(
        [
            ("Peak", f"{fmt.size(memory['peak_bytes'])}, reached in {memory['phase']}"),
            *((fmt.label(kind).capitalize(), fmt.size(amount)) for kind, amount in memory["by_kind"].items()),
            ("Peak that the device reports", fmt.not_known("a CPU reports none") if seen is None else fmt.size(seen)),
        ]
    )


def _nvml(nvml: dict[str, Any]) -> list[Block]:
    if not nvml["available"]:
        return [Items([f"Not available: {nvml['reason']}"])]
    counters = nvml.get("counters", nvml)
    read = {name: found for name, found in counters.items() if isinstance(found, dict) and "mean" in found}
    other = {name: found for name, found in (nvml | counters).items() if name not in {*read, "available", "counters"}}
    spread = ("min", "mean", "max")
    table = Table(
        "Sampled beside the timed steps.",
        [Column("counter"), Column("unit"), *(Column(key, numeric=True) for key in (*spread, "samples"))],
        [
            [fmt.label(name), found["unit"], *fmt.column([found[key] for key in spread]), str(found["samples"])]
            for name, found in read.items()
        ],
    )
    return [*([table] if read else []), *([_facts(other)] if other else [])]


def _trace(trace: dict[str, Any]) -> Facts:
    return Facts(
        [
            ("Traced steps", str(trace["steps"])),
            ("Distortion", f"{fmt.number(trace['distortion'])} times the timed step; shares are scaled back to it"),
            ("Attributed to modules", f"{fmt.percent(trace['attributed_share'])} of the traced time"),
            ("Chrome trace", str(trace["path"] or "not kept")),
        ]
    )


def _facts(values: dict[str, Any]) -> Facts:
    return Facts([(fmt.label(key), fmt.value(key, given)) for key, given in values.items()])
