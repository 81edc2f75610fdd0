"""What is said about a device: its peaks, measured and by the datasheet, and what its driver saw."""

from collections.abc import Mapping
from typing import Any

from mfubench.run import Run

from . import format as fmt
from .blocks import Block, Column, Facts, Items, Page, Section, Table
from .verdict import why_no_mfu


def doctor_page(found: Mapping[str, Mapping[str, Any]]) -> Page:
    """What ``mfubench doctor`` says of this machine."""
    about = found["environment"]
    sections = [Section(fmt.label(title).capitalize(), [Facts.of(facts)], brief=True) for title, facts in found.items()]
    return Page("What this machine can measure", f"{about['device_name']}, torch {about['torch']}", [], sections)


def peaks(run: Run) -> list[Block]:
    """What bounds the device: which peak is in use, and the calibration beside the datasheet."""
    peak, rows = run.peak, run.peaks
    source = peak["source"] if peak["datasheet_tflops"] else fmt.not_known(why_no_mfu(run))
    how = f"; {peak['measured_how']}" if "measured_how" in peak else ""
    facts = Facts(
        [
            ("Peak in use", f"{peak['in_use']}, {peak['dtype']}"),
            ("Datasheet", source),
            ("Calibration", f"{peak['measured_date']}{how}"),
        ]
    )
    sheet_gb_s = peak.get("datasheet_bandwidth_gb_s")
    rates = [
        *((f"{row['dtype']} GEMM, TFLOP/s", row["measured_tflops"], row["datasheet_tflops"]) for row in rows),
        ("copy, GB/s", peak["bandwidth_gb_s"], sheet_gb_s),
    ]
    table = Table.of(
        "What a large GEMM on random data and a large copy reach on this device, beside the dense datasheet peak. n/a: "
        "mfubench doctor --calibrate measures what no run needed yet; a CPU has no datasheet.",
        [
            (Column("rate"), [rate for rate, _, _ in rates]),
            (Column("measured", numeric=True), [fmt.number(measured) for _, measured, _ in rates]),
            (Column("datasheet", numeric=True), [fmt.number(sheet) for _, _, sheet in rates]),
            (
                Column("measured on"),
                [*(str(row["measured_date"] or fmt.NOT_KNOWN) for row in rows), str(peak["measured_date"])],
            ),
            (Column("used by the step"), [*(fmt.value("", row["used"]) for row in rows), "yes"]),
        ],
    )
    return [facts, table]


def counters(nvml: dict[str, Any]) -> list[Block]:
    """What NVML saw beside the timed steps, and what the GPU's own counters say about the FLOPs."""
    if not nvml["available"]:
        return [Items([f"Not available: {nvml['reason']}"])]
    parts = [_sampled(nvml), _window(nvml), _held_down(nvml), *_own_counters(nvml)]
    return [block for block in parts if block is not None]


def _sampled(nvml: dict[str, Any]) -> Table | None:
    seen = {name: found for name, found in nvml["counters"].items() if "mean" in found}
    if not seen:
        return None
    spread = ("min", "mean", "max")
    return Table(
        f"Sampled every {fmt.number(nvml['interval_s'])} s beside the timed steps.",
        [
            Column("counter"),
            Column("unit"),
            *(Column(key, numeric=True) for key in (*spread, "samples")),
            Column("source"),
        ],
        [
            [
                fmt.label(name),
                found["unit"],
                *fmt.column([found[key] for key in spread]),
                str(found["samples"]),
                found["source"],
            ]
            for name, found in seen.items()
        ],
    )


def _window(nvml: dict[str, Any]) -> Facts:
    energy = nvml["energy"]
    pairs = [
        ("Window", f"{fmt.number(nvml['window_s'])} s, {nvml['window_steps']} steps"),
        ("Energy in it", _energy(energy)),
    ]
    if energy["value"] is not None:
        pairs += [
            ("Energy a step", f"{fmt.number(energy['joules_per_step'])} J"),
            ("Energy a sample", f"{fmt.number(energy['joules_per_sample'])} J"),
        ]
    return Facts(pairs)


def _energy(energy: dict[str, Any]) -> str:
    if energy["value"] is None:
        return fmt.not_known(energy["unavailable"])
    return f"{fmt.number(energy['value'])} J, to {fmt.number(energy['uncertain_percent'], 1)} % ({energy['source']})"


def _held_down(nvml: dict[str, Any]) -> Block | None:
    """Throttle reasons as time: as they were sampled, and as the driver itself counts some of them."""
    events, limits = nvml["clock_events"], nvml["limits"]
    counted = {name: found for name, found in limits.items() if "ms" in found}
    rows = [(fmt.label(name), "sampled", found) for name, found in events.get("seen", {}).items()]
    rows += [
        (f"{fmt.label(name)} limit", "counted by the driver", found) for name, found in counted.items() if found["ms"]
    ]
    if not rows:
        return Items(["Nothing held the clocks down."]) if counted or "seen" in events else None
    return Table.of(
        "What held the clocks down in the window.",
        [
            (Column("reason"), [reason for reason, _, _ in rows]),
            (Column("known by"), [how for _, how, _ in rows]),
            (Column("ms", numeric=True), fmt.column([found["ms"] for _, _, found in rows])),
            (Column("share %", numeric=True, bar=True), fmt.percents([found["share"] for _, _, found in rows])),
        ],
    )


def _own_counters(nvml: dict[str, Any]) -> list[Block]:
    """The performance monitor's counters, and whether they agree with the FLOPs and bytes that are claimed."""
    seen = {name: found for name, found in nvml["gpm"].items() if isinstance(found, float)}
    check = nvml["cross_check"]
    blocks: list[Block] = []
    if seen:
        blocks.append(Facts([(fmt.label(name).capitalize(), f"{fmt.number(found)} %") for name, found in seen.items()]))
    if check:
        agree = (
            f"HFU {fmt.percent(check['hfu'])} and the {check['pipe']} pipe active for "
            f"{fmt.percent(check['pipe_active'])} of the time agree: it is active at least while it does its FLOPs"
        )
        traffic = (
            f"the step must move {fmt.percent(check['least_traffic'])} of what the datasheet bandwidth allows; the "
            f"memory was active for {fmt.percent(check['dram_active'])} of the time"
        )
        words = check["contradiction"] or agree
        blocks.append(Facts([("FLOPs against the counters", words), ("Bytes against the counters", traffic)]))
    return blocks
