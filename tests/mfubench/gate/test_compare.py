"""What differs between two stocks, and which of it is worse."""

from pathlib import Path
from typing import Any

import pytest

from mfubench.gate.code import kernel_rows
from mfubench.gate.compare import is_same_code, missing_row, model_rows
from mfubench.gate.policy import LIMITS
from mfubench.gate.rows import Row
from mfubench.gate.side import COUNTS

CODE = {
    "registers": 64, "spill_bytes": 0, "shared_bytes": 1024, "tensor_core": "wgmma", "mma_rows": 0, "async_copy": "tma",
    "access_bytes": 16, "instructions": 1000, "warps": 4, "occupancy": 0.5, "digest": "a",
}  # fmt: skip
KERNEL = {
    "kernel": "scores", "variant": "d=64", "config": "warps=4", "locked": False, "taken": True, "launches": 2,
    "grids": ["8x1x1"], "file": "/repo/net.py", "line": 7, "code": CODE, "error": None,
}  # fmt: skip


def stock(counts: dict[str, int] | None = None, *kernels: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {
        "counts": {**dict.fromkeys(COUNTS, 100), **(counts or {})},
        "where": {name: [["net.mlp", "copy", "forward", (counts or {}).get(name, 100)]] for name in COUNTS},
        "sources": {"net.mlp": ["net.py", 7]},
        "peak_phase": "(backward)",
        "unknown_ops": [],
        "data_hash": "same",
        "code": {"net.py": "x"},
        "kernels": {"sm_90": list(kernels)},
        "not_compiled": {},
        **other,
    }


def kernel(code: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    changed = {"digest": "b", **code} if code else {}
    return {**KERNEL, "code": {**CODE, **changed}, **other}


def of_model(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Row]:
    return {row.metric: row for row in model_rows("net", before, after, LIMITS)}


def of_kernels(before: dict[str, Any], after: dict[str, Any]) -> list[Row]:
    return list(kernel_rows("net", before, after, LIMITS, (Path("/tmp/base/repo"), Path("/repo"))))


def test_what_is_the_same_passes() -> None:
    rows = of_model(stock(), stock())
    assert set(rows) == set(COUNTS) and {row.verdict for row in rows.values()} == {"PASS"}


@pytest.mark.parametrize("metric", ["bytes", "kept_activations", "peak_memory", "hardware_flops", "wide_flops"])
def test_more_in_the_same_model_fails_and_less_is_better(metric: str) -> None:
    more, less = (of_model(stock(), stock({metric: count}))[metric] for count in (101, 99))
    assert (more.verdict, less.verdict) == ("FAIL", "IMPROVED") and "+1.00%" in more.why and more.ratio == (1.01,) * 3


def test_a_count_that_differs_says_where() -> None:
    rows = of_model(stock(), stock({"bytes": 101, "operators": 98}))
    assert rows["bytes"].located == "net.mlp: +1.00 B copy, forward" and rows["operators"].located.startswith(
        "net.mlp: -2"
    )
    assert (rows["bytes"].file, rows["bytes"].line) == ("net.py", 7)
    same = rows["peak_memory"]
    assert (same.where, same.elsewhere, same.file, same.explanation) == ((), 0, None, "")


def test_a_place_that_head_has_no_source_of_has_no_line() -> None:
    row = of_model(stock(), stock({"bytes": 101}, sources={}))["bytes"]
    assert row.where and (row.file, row.line) == (None, None)


def test_the_line_is_that_of_the_largest_place_that_head_has() -> None:
    """What only base has is the larger difference here."""
    base, head = stock(), stock({"bytes": 101})
    base["where"]["bytes"].append(["gone", "gemm", "forward", 50])
    head["where"]["bytes"] = [["net.mlp", "copy", "forward", 151]]
    row = of_model(base, head)["bytes"]
    assert [each.more for each in row.where] == [51, -50] and row.line == 7
    head["where"]["bytes"] = [["net.mlp", "copy", "forward", 101]]
    row = of_model(base, head)["bytes"]
    assert [each.more for each in row.where] == [-50, 1] and row.line == 7


def test_a_peak_that_is_reached_elsewhere_in_the_step_says_so() -> None:
    """Its places are those of two moments."""
    row = of_model(stock(), stock({"peak_memory": 120}, peak_phase="(optimizer)"))["peak_memory"]
    assert "reached in (optimizer), not in (backward)" in row.why
    assert "reached" not in of_model(stock(), stock({"peak_memory": 120}))["peak_memory"].why


def test_a_limit_is_a_share() -> None:
    limits = {**LIMITS, "bytes": 0.01}
    found = {
        n: next(r for r in model_rows("net", stock(), stock({"bytes": n}), limits) if r.metric == "bytes")
        for n in (101, 102)
    }
    assert (found[101].verdict, found[102].verdict) == ("PASS", "FAIL")


def test_another_model_may_need_more() -> None:
    """A change that adds a layer is meant; what it costs is told, and fails in time alone."""
    rows = of_model(stock(), stock({"parameters": 120, "model_flops": 130, "bytes": 140}))
    assert {rows[name].verdict for name in ("parameters", "model_flops", "bytes")} == {"CHANGED"}
    assert "another one" in rows["bytes"].why and "numerator" in rows["model_flops"].why


def test_what_was_nothing_before_has_no_ratio() -> None:
    row = of_model(stock({"kept_activations": 0}), stock({"kept_activations": 5}))["kept_activations"]
    assert row.verdict == "FAIL" and row.ratio is None and "from nothing" in row.why


def test_an_operator_whose_flops_are_not_known_is_named() -> None:
    rows = of_model(stock(), stock(unknown_ops=["mine::dot"]))
    assert rows["unknown_ops"].verdict == "CHANGED" and "mine::dot" in rows["unknown_ops"].why


def test_other_batches_are_told() -> None:
    rows = of_model(stock(), stock({"bytes": 120}, data_hash="other"))
    assert (rows["batches"].verdict, rows["bytes"].verdict) == ("CHANGED", "CHANGED")


@pytest.mark.parametrize(
    ("code", "metric", "verdict"),
    [
        ({"spill_bytes": 8}, "spill_bytes", "FAIL"),
        ({"tensor_core": "mma"}, "tensor_core", "FAIL"),
        ({"tensor_core": None}, "tensor_core", "FAIL"),
        ({"tensor_core": "tcgen05"}, "code", "PASS"),
        ({"async_copy": "cp.async"}, "async_copy", "FAIL"),
        ({"access_bytes": 8}, "access_bytes", "FAIL"),
        ({"occupancy": 0.25, "registers": 128}, "occupancy", "CHANGED"),
        ({"occupancy": 0.0}, "occupancy", "FAIL"),
        ({"registers": 80}, "registers", "CHANGED"),
        ({"registers": 72}, "code", "PASS"),
        ({"instructions": 1200}, "instructions", "CHANGED"),
        ({"instructions": 1100}, "code", "PASS"),
    ],
)
def test_code_that_is_worse(code: dict[str, Any], metric: str, verdict: str) -> None:
    (row,) = of_kernels(stock(None, kernel()), stock(None, kernel(code)))
    assert (row.metric, row.verdict) == (metric, verdict)
    assert (row.file, row.line) == ("net.py", 7) and row.subject == "scores (d=64) on sm_90"


def test_a_config_that_won_with_its_spills_may_keep_them() -> None:
    (row,) = of_kernels(stock(None, kernel()), stock(None, kernel({"spill_bytes": 8}, locked=True)))
    assert (row.metric, row.verdict) == ("spill_bytes", "CHANGED")


def test_the_same_instructions_pass_wherever_they_stand() -> None:
    (row,) = of_kernels(stock(None, kernel()), stock(None, kernel(line=99)))
    assert (row.verdict, row.why) == ("PASS", "the same instructions")


def test_kernels_that_come_and_go_are_told() -> None:
    came, gone = of_kernels(stock(None, kernel()), stock(None, kernel(kernel="others")))[::-1]
    assert {came.why, gone.why} == {"launched for the first time", "no longer launched"}
    assert {came.verdict, gone.verdict} == {"CHANGED"}


@pytest.mark.parametrize("taken", [True, False])
def test_a_kernel_of_base_alone_is_named_by_its_file_as_head_would_call_it(taken: bool) -> None:
    """Base's folder is gone when the row is read, and its line is not head's."""
    gone = kernel(file="/tmp/base/repo/csrc/k.py", taken=taken)
    (row,) = of_kernels(stock(None, gone), stock(None))
    assert (row.metric, row.file, row.line) == ("launched", "csrc/k.py", None)
    installed = kernel(file="/usr/lib/k.py", taken=taken)
    assert of_kernels(stock(None, installed), stock(None))[0].file == "/usr/lib/k.py"


def test_a_config_is_held_against_itself_and_code_against_the_same() -> None:
    """Base launches a default and a locked config; head makes the locked one its default, or calls it otherwise."""
    default, locked = kernel(config="warps=4"), kernel({"registers": 99}, config="warps=8", locked=True)
    for left in (locked, {**locked, "config": "num_stages=2 num_warps=8"}):
        same, gone = of_kernels(stock(None, default, locked), stock(None, left))
        assert (same.verdict, same.why) == ("PASS", "the same instructions")
        assert (gone.metric, gone.why) == ("launched", "no longer launched")
    came, same = sorted(of_kernels(stock(None, locked), stock(None, default, locked)), key=lambda row: row.verdict)
    assert (came.why, same.why) == ("launched for the first time", "the same instructions")


def test_what_has_no_equal_is_held_against_what_is_left() -> None:
    kept, before = kernel(), kernel({"digest": "d"}, config="warps=8")
    broken = kernel(config="warps=8", error="no") | {"code": None}
    after = kernel({"digest": "c", "spill_bytes": 8}, config="warps=2")
    rows = of_kernels(stock(None, before, kept), stock(None, kept, after))
    assert [(row.metric, row.verdict) for row in rows] == [("code", "PASS"), ("spill_bytes", "FAIL")]
    rows = of_kernels(stock(None, broken, kept), stock(None, kept, {**broken, "config": "warps=2"}))
    assert [(row.metric, row.verdict) for row in rows] == [("code", "PASS"), ("compiles", "CHANGED")]


def test_other_grids_are_told() -> None:
    row = of_kernels(stock(None, kernel()), stock(None, kernel(grids=["16x1x1"])))[0]
    assert (row.metric, row.verdict, row.base, row.head) == ("launches", "CHANGED", "2 of 8x1x1", "2 of 16x1x1")


def test_what_no_longer_compiles_fails() -> None:
    broken = kernel(code=None, error="CompilationError: no") | {"code": None}
    (row,) = of_kernels(stock(None, kernel()), stock(None, broken))
    assert (row.metric, row.verdict) == ("compiles", "FAIL") and "CompilationError" in row.why
    (row,) = of_kernels(stock(None, broken), stock(None, broken))
    assert row.verdict == "CHANGED" and row.why.startswith("compiles on neither side: CompilationError")
    (row,) = of_kernels(stock(None, broken), stock(None, kernel()))
    assert row.verdict == "IMPROVED"


def test_a_target_whose_kernels_one_side_does_not_tell_is_an_error() -> None:
    """A step may need what its kernels would have written: then neither side tells, now or before."""
    told = {"not_compiled": {"sm_80": "took over 900 s"}}
    (row,) = of_kernels(stock(), stock(**told))
    assert (row.verdict, row.subject) == ("ERROR", "on sm_80") and "head: took over" in row.why
    (row,) = of_kernels(stock(**told), stock(**told))
    assert row.verdict == "INCONCLUSIVE"


def test_an_autotuners_configs_fail_when_none_is_left_that_is_sound() -> None:
    """Which of them would win is not known without a GPU."""
    sound, spills = kernel(taken=False), kernel({"spill_bytes": 8}, taken=False, config="warps=8")
    broken = kernel(taken=False, config="warps=2", error="no") | {"code": None}
    (row,) = of_kernels(stock(None, sound, spills), stock(None, sound, spills))
    assert (row.verdict, row.head) == ("PASS", "1 of 2")
    (row,) = of_kernels(stock(None, sound, spills), stock(None, broken, spills))
    assert (row.metric, row.verdict, row.base, row.head) == ("configs", "FAIL", "1 of 2", "0 of 2")
    (row,) = of_kernels(stock(None, sound, sound), stock(None, sound, broken))
    assert row.verdict == "CHANGED"
    (row,) = of_kernels(stock(None), stock(None, sound, spills))
    assert row.verdict == "CHANGED"
    (row,) = of_kernels(stock(None, kernel()), stock(None, sound, spills))
    assert (row.base, row.head) == ("1 of 1", "1 of 2")


def test_sides_that_could_not_be_looked_at() -> None:
    refused, missing = {"refused": "it raised"}, {"refused": "no such module", "missing": True}
    assert missing_row("net", stock(), stock()) is None
    found = [missing_row("net", *sides) for sides in ((stock(), refused), (refused, stock()), (missing, stock()))]
    assert [row and row.verdict for row in found] == ["ERROR", "ERROR", "NO_BASELINE"]


def test_the_same_code() -> None:
    assert is_same_code(stock(None, kernel()), stock(None, kernel(line=9)))
    assert not is_same_code(stock(None, kernel()), stock(None, kernel({"registers": 65})))
    assert not is_same_code(stock(), stock({"operators": 101}))
    assert not is_same_code(stock(), stock(code={"net.py": "y"}))
