"""The GPU's own counters as a witness of the FLOPs and bytes that a step is said to take.

A pipe cannot do work while it is idle: HFU above the share of the window in which the pipe was active means that FLOPs
are counted which nobody executed, or a peak that is too low. The other way round proves less, because a pipe is also
active on the overhang of tiles and on instructions of a lower rate; only a wide gap hints at work that is not counted.
"""

from typing import Any

from mfubench.run import Run

PIPES = {"bf16": "tensor", "fp32": "fp32"}
# A boost clock above the datasheet's makes a pipe that is always active exceed 100 % of its peak: 1980 over 1830 MHz.
CLOCK_SLACK, POINTS = 1.1, 0.02
UNEXPLAINED, UNEXPLAINED_POINTS = 3.0, 0.1


def cross_check(run: Run) -> dict[str, Any] | None:
    """HFU beside the activity of the pipe that does its FLOPs, and the least traffic beside the memory's activity.

    All are shares of 1; ``contradiction`` is a sentence where FLOPs and counter cannot both be right, else None. None
    where the counter or a datasheet peak is missing.
    """
    gpm, pipe = run.nvml.get("gpm", {}), PIPES.get(run.peak["dtype"])
    active, hfu = gpm.get(f"{pipe}_active_percent"), run.hfu
    if pipe is None or hfu is None or not isinstance(active, float):
        return None
    share, dram, gb_s = active / 100, gpm.get("dram_active_percent"), run.peak.get("datasheet_bandwidth_gb_s")
    least = sum(row.bytes for row in run.modules) / (run.step["time_ms"]["median"] * 1e6)
    return {
        "pipe": pipe,
        "pipe_active": share,
        "hfu": hfu,
        "contradiction": _contradiction(pipe, share, hfu),
        "dram_active": dram / 100 if isinstance(dram, float) else None,
        "least_traffic": least / gb_s if gb_s else None,
    }


def _contradiction(pipe: str, active: float, hfu: float) -> str | None:
    told = f"HFU is {hfu:.1%} and the {pipe} pipe was active for {active:.1%} of the time"
    if hfu > CLOCK_SLACK * active + POINTS:
        return f"{told}: it cannot have done the FLOPs that are counted, so the count or the peak is wrong"
    if active > UNEXPLAINED * hfu + UNEXPLAINED_POINTS:
        return f"{told}: FLOPs that are not counted, the overhang of tiles, or instructions of a lower rate"
    return None
