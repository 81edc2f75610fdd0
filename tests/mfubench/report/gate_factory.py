"""Documents of a performance gate, for the tests of what renders them."""

from datetime import date
from typing import Any

from mfubench.gate.policy import LIMITS, Policy, Waiver
from mfubench.gate.rows import Outcome, Row
from mfubench.gate.where import Difference

WHY_SLOWER = "the whole interval is above what is allowed"
HOSTILE = "a|b <i>c</i> `d`\n::error::e % \x00\x1b[31m @triton.jit #12 ::f,g:h \ud800"
RATIO = (1.08, 1.06, 1.10)


def a_row(verdict: Any = "PASS", **changes: Any) -> Row:
    given = {"benchmark": "kunlun small", "tier": "model", "metric": "bytes", "base": 734_003_200, "unit": "B"}
    return Row(**{"verdict": verdict, "head": 734_003_200, "why": "", **given, **changes})


def slower(verdict: Any = "FAIL", **changes: Any) -> Row:
    """A row of time."""
    given = {"metric": "step_time", "base": 12.3, "head": 13.3, "why": WHY_SLOWER, "unit": "ms", "ratio": RATIO}
    return a_row(verdict, **{"tier": "time", "margin": 0.03, **given, **changes})


def of_a_kernel(verdict: Any = "PASS", **changes: Any) -> Row:
    given = {"metric": "spill_bytes", "subject": "gdpa_fwd (bf16) on sm_90", "base": 0, "head": 176, "margin": 0}
    place = {"file": "kernels/mfu_kernels/gdpa/kernel.py", "line": 41}
    why = "spills 176 bytes a thread, 0 before"
    return a_row(verdict, **{"tier": "kernels", "why": why, "unit": "", **given, **place, **changes})


def located(verdict: Any = "FAIL", **changes: Any) -> Row:
    """A count that says where it differs."""
    where = (
        Difference("items", "copy", "forward", 0, 12 << 20),
        Difference("users.blocks.*", "gemm", "backward", 3 << 20, 2 << 20, 4),
    )
    given = {"base": 100 << 20, "head": 111 << 20, "why": "+11.00%", "where": where, "elsewhere": 0, "margin": 0.0}
    return a_row(verdict, **{**given, **changes})


def some_rows() -> list[Row]:
    """One of each verdict, one that is waived, and twelve that pass."""
    return [
        slower(),
        of_a_kernel("FAIL"),
        of_a_kernel("FAIL", subject="hstu_fwd on sm_80", waived="until 2026-12-31: the new mask needs them"),
        of_a_kernel("CHANGED", metric="registers", base=128, head=168, why="registers 128 to 168", margin=8),
        a_row("ERROR", benchmark="hstu small", metric="model", base=None, head=None, why="head: no module named x"),
        slower("INCONCLUSIVE", benchmark="gr small", ratio=(1.03, 0.99, 1.06), why="the budget ended"),
        slower("ENVIRONMENT", benchmark="dlrm small", why="slower, and no code differs"),
        a_row("NO_BASELINE", benchmark="new small", metric="model", base=None, head="there", why="base: no such model"),
        a_row("IMPROVED", metric="peak_memory", head=700_000_000, ratio=(0.95, 0.95, 0.95), margin=0, why="-4.63%"),
        slower("PASS", benchmark="tiger small", head=12.3, ratio=(1.0, 0.99, 1.01), why=""),
        *(a_row(metric=f"count_{at}", ratio=(1.0, 1.0, 1.0), margin=0.0) for at in range(4)),
        *(of_a_kernel(subject=f"kernel_{at} on sm_90", head=0, why="") for at in range(7)),
    ]


def a_timing(benchmark: str = "kunlun small", verdict: str = "FAIL", **changes: Any) -> dict[str, Any]:
    steps = {"unit": "ms", "pairs": 8, "blocks_a_pair": 6}
    times = {"base_ms": [12.3, 12.1, 12.5], "head_ms": [13.3, 13.1, 13.5], "ratio": list(RATIO)}
    noise = {"against_itself": [1.001, 0.997, 1.004], "ratios_of_pairs": [1.081, 1.079, 1.08, 1.083]}
    judged = {"benchmark": benchmark, "margin": 0.03, "verdict": verdict, "why": WHY_SLOWER}
    return {**steps, **times, **noise, **judged, **changes}


def a_gate(*rows: Row, **changes: Any) -> dict[str, Any]:
    """The document of a gate with ``rows``, in the order that a gate gives them; ``changes`` replace parts of it."""
    outcome = Outcome.of(rows)
    side = {"commit": "abc123def456", "dirty": False, "folder": None}
    timed = {row.benchmark: row for row in outcome.rows if row.tier == "time"}
    given = {
        "schema_version": 1,
        "verdict": outcome.verdict,
        "exit_code": outcome.exit_code(),
        "counted": outcome.counted,
        "base": {**side, "name": "base", "given": "origin/main"},
        "head": {**side, "name": "head", "given": "working directory", "dirty": True, "folder": "/src/models"},
        "environment": {"torch": "2.11.0", "device_name": "NVIDIA H100", "memory_bytes": 2**34, "driver": None},
        "toolchain": {"triton": "3.9.0", "ptxas": "12.9.86"},
        "targets": ["sm_80", "sm_90"],
        "workloads": {
            "kunlun small": {
                **{"batch_size": 32, "mode": "train", "dtype": "fp32", "device": "cpu"},
                **{"kernels": {"sm_80": 5, "sm_90": 6}, "kernels_dtype": "bf16"},
            }
        },
        "policy": Policy(
            LIMITS, (Waiver("* spill_bytes", date(2026, 12, 31), "the new mask"),), "a.toml"
        ).to_document(),
        "rows": outcome.to_rows(),
        "timings": [a_timing(name, row.verdict, ratio=list(row.ratio or RATIO)) for name, row in timed.items()],
        "notes": ["gr small took its whole budget"],
        "warnings": ["another process was on the GPU"],
        "method": "Processes of both sides took turns.",
        "command_line": "mfubench gate run --base origin/main",
    }
    return {**given, **changes}


def a_check(*rows: Row, **changes: Any) -> dict[str, Any]:
    """The document of a gate that measured no time."""
    return a_gate(*rows, timings=[], **changes)


def a_hostile_gate(number: int = 1) -> dict[str, Any]:
    """A gate whose every text tries to be more than text."""
    row = of_a_kernel("FAIL", benchmark=HOSTILE, subject=HOSTILE, why=HOSTILE, file=HOSTILE, base=HOSTILE, head=HOSTILE)
    waived = of_a_kernel("FAIL", benchmark=HOSTILE, metric=HOSTILE, waived=HOSTILE)
    texts = {"notes": [HOSTILE], "warnings": [HOSTILE], "method": HOSTILE, "command_line": HOSTILE}
    where = (Difference(HOSTILE, HOSTILE, HOSTILE, 0, 1),)
    count = located("IMPROVED", benchmark=HOSTILE, metric=HOSTILE, where=where)
    told = a_gate(*[row, waived, slower(benchmark=HOSTILE), count] * number, **texts, environment={HOSTILE: HOSTILE})
    for side in ("base", "head"):
        told[side] = {"given": HOSTILE, "commit": HOSTILE, "dirty": None, "folder": HOSTILE}
    return told


def a_self_check(**changes: Any) -> dict[str, Any]:
    """The document of a gate's check of itself."""
    given = {
        "schema_version": 1,
        "benchmark": "kunlun small",
        "pairs": 12,
        "noise": [1.0, 0.995, 1.004],
        "found": [1.1, 1.094, 1.105],
        "injected": 0.10,
        "margin": 0.03,
        "false_alarms": 0.002,
        "undecided_equal": 0.1,
        "detected": 0.99,
        "missed": 0.0,
        "undecided_slower": 0.01,
        "smallest_change": 0.034,
        "trials": 2000,
        "pairs_used_equal": 4.6,
        "pairs_used_slower": 4.1,
        "environment": {"torch": "2.11.0"},
        "method": "Base ran against itself; gates were drawn from its pairs.",
    }
    return {**given, **changes}
