"""The table of results that a README shows: kernels beside their fastest peer, and models."""

from typing import Any

import pytest

from mfubench.errors import BadInput
from mfubench.report.campaign import results_table

INDEX = {"identity": {"device": "a GPU"}, "environment": {"torch": "2.11"}}


def row(implementation: str, ms: float, ours: float | None = None, **changes: Any) -> dict[str, Any]:
    return {
        **{"op": "gdpa", "shape": "X", "direction": "forward", "implementation": implementation, "same_math": True},
        **{"ms": (ms, ms, ms), "tflops": 100.0, "share_of_floor": 0.5, "reason": None},
        **{"times_ours": None if ours is None else (ours, ours, ours), **changes},
    }


def table(*rows: dict[str, Any]) -> list[str]:
    results = {"bench": [{"status": "done", "document": {"rows": list(rows)}}]}
    return [line for line in results_table(INDEX, results).splitlines() if line.startswith("| gdpa")]


def test_ours_stands_beside_the_fastest_peer_of_the_same_mathematics() -> None:
    (line,) = table(
        row("mfubench", 2.0),
        row("slow", 6.0, 3.0),
        row("fast", 3.0, 1.5),
        row("a ceiling", 1.0, 0.5, same_math=False),
        row("absent", 0.0, reason="out of memory") | {"ms": None},
    )
    assert "| fast |" in line and "1.5" in line and "2.0" in line and "50.0" in line


def test_a_shape_without_a_peer_has_none() -> None:
    lines = table(row("mfubench", 2.0), row("mfubench", 4.0, direction="backward"))
    assert len(lines) == 2 and all("n/a" in line for line in lines)


def test_without_results_there_is_no_table() -> None:
    with pytest.raises(BadInput, match="neither a profile nor a bench"):
        results_table(INDEX, {})


def test_locked_configs_of_the_device_are_shown() -> None:
    entry = {"kernel": "a_kernel", "shape": "X", "key": "d=64", "config": {"TILE": 64}, "ms": 1.5, "ms_of_default": 2.5}
    entries = [{**entry, "configs_timed": 7, "device": device} for device in ("a GPU", "another GPU")]
    results = {"bench": [{"status": "done", "document": {"rows": [row("mfubench", 2.0)]}}]}
    lines = [line for line in results_table(INDEX, results, entries).splitlines() if line.startswith("| a_kernel")]
    assert lines == ["| a_kernel | X | d=64 | TILE=64 | 1.50 | 2.50 | 7 |"]
