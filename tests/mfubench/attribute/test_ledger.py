"""The ledger, and the module table of a step: they add up to its time, and name who is responsible."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mfubench.attribute.attribution import UNOWNED, Attribution
from mfubench.attribute.ledger import (
    NUM_KERNELS,
    NUM_TOP_MODULES,
    Slices,
    kernel_rows,
    ledger_lines,
    module_rows,
    slice_step,
)
from mfubench.attribute.roofline import Ceilings
from mfubench.measure.count import Count, Work, WorkKey
from mfubench.measure.memory import MemoryPeak
from mfubench.measure.scopes import DATA, FORWARD, OPTIMIZER, ROOT
from mfubench.run import CAUSE_FAMILIES

CEILINGS = Ceilings(1.0, 0.5, 100.0, {"fp32": 0.5})
GFLOP, MB = 10**9, 10**6
STEP_MS = 50.0
MEMORY = MemoryPeak(350, FORWARD, {"parameters": 350}, Counter({"a": 100, "silent": 250, "b": 0}), Counter({"a": 60}))
MODEL = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.GELU(), "silent": nn.LayerNorm(1), "idle": nn.ReLU()})

# The trace saw 200 ms in two steps, twice as long as the timing pass: 4 us in it are 1 us of the step's 50 ms.
BUSY = {
    WorkKey("a", "fwd", "gemm"): 40_000.0,
    WorkKey("a", "bwd", "gemm"): 60_000.0,
    WorkKey("b", "fwd", "elementwise"): 20_000.0,
    WorkKey(OPTIMIZER, "fwd", "other"): 24_000.0,
    WorkKey(DATA, "fwd", "copy"): 4_000.0,
    WorkKey(UNOWNED, "fwd", "copy"): 4_000.0,
}
HOST = {
    ("a", "fwd"): 20_000.0,
    ("b", "fwd"): 12_000.0,
    (OPTIMIZER, "fwd"): 4_000.0,
    (FORWARD, "fwd"): 4_000.0,
    (UNOWNED, "fwd"): 4_000.0,
}
WORK = {
    WorkKey("a", "fwd", "gemm"): Work(model=3 * GFLOP, hardware=4 * GFLOP, bytes=10 * MB),
    WorkKey("a", "bwd", "gemm"): Work(model=6 * GFLOP, hardware=6 * GFLOP, bytes=20 * MB),
    WorkKey("b", "fwd", "elementwise"): Work(bytes=100 * MB),
    WorkKey("b", "fwd", "gemm"): Work(model=GFLOP // 2, hardware=GFLOP // 2),  # fused: no time of its own
    WorkKey("b", "bwd", "copy"): Work(bytes=50 * MB),  # neither time nor model FLOPs
    WorkKey(OPTIMIZER, "fwd", "other"): Work(bytes=40 * MB),
}


@pytest.fixture
def attribution() -> Attribution:
    found = Attribution(span=200_000.0, steps=2)
    found.busy.update(BUSY)
    found.host.update(HOST)
    return found


@pytest.fixture
def count() -> Count:
    found = Count()
    found.work.update(WORK)
    return found


def test_the_lines_sum_to_the_step(attribution: Attribution, count: Count) -> None:
    lines = ledger_lines(slice_step(attribution, count, CEILINGS, STEP_MS), STEP_MS)
    assert sum(line.ms for line in lines) == pytest.approx(STEP_MS)
    assert sum(line.share for line in lines) == pytest.approx(1.0)
    assert all(line.share == pytest.approx(line.ms / STEP_MS) for line in lines)


def test_each_line_by_hand(attribution: Attribution, count: Count) -> None:
    """a: 10 ms forward, of which a quarter is padding, and 15 ms backward; b: 5 ms and a product that left no time."""
    lines = ledger_lines(slice_step(attribution, count, CEILINGS, STEP_MS), STEP_MS)
    assert {line.cause: line.ms for line in lines} == pytest.approx(
        {
            "padding": 2.5,
            "useful": 3.0 + 6.0 + 0.5,
            "peak_gap": 3.0 + 6.0 + 0.5,
            "memory_bound.elementwise": 1.0,
            "inefficiency.gemm": (7.5 - 6.0) + (15.0 - 12.0) + (0.0 - 1.0),
            "inefficiency.elementwise": 5.0 - 1.0,
            "optimizer": 6.0 + 1.0,
            "data": 1.0,
            "launch": 5.0 + 3.0 + 1.0,
            "not_attributed": 1.0 + 1.0 + 1.0,  # its busy time, its gaps, and what the trace leaves
        }
    )


def test_the_lines_stand_in_order_and_name_their_modules(attribution: Attribution, count: Count) -> None:
    lines = ledger_lines(slice_step(attribution, count, CEILINGS, STEP_MS), STEP_MS)
    families = [line.cause.partition(".")[0] for line in lines]
    assert families == sorted(families, key=CAUSE_FAMILIES.index)
    holders = {line.cause: line.modules for line in lines}
    assert holders["useful"] == ["a", "b"] and holders["launch"] == ["a", "b", FORWARD]
    assert holders["optimizer"] == [OPTIMIZER] and holders["not_attributed"] == []


def test_a_line_names_no_more_than_its_largest_modules(attribution: Attribution) -> None:
    attribution.host.update({(f"m{index}", "fwd"): 100.0 * (9 - index) for index in range(9)})
    attribution.host.update({("a", "fwd"): 0.0, ("b", "fwd"): 0.0, (FORWARD, "fwd"): 0.0})
    lines = ledger_lines(slice_step(attribution, Count(), CEILINGS, STEP_MS), STEP_MS)
    (launch,) = (line for line in lines if line.cause == "launch")
    assert launch.modules == ["m0", "m1", "m2"] and len(launch.modules) == NUM_TOP_MODULES


def test_rows_are_own_work_and_sum_to_the_totals(attribution: Attribution, count: Count) -> None:
    slices = slice_step(attribution, count, CEILINGS, STEP_MS)
    rows = module_rows(MODEL, slices, count, MEMORY, CEILINGS, STEP_MS)
    total = count.total()
    assert sum(row.fwd_model_flops + row.bwd_model_flops for row in rows) == total.model
    assert sum(row.bytes for row in rows) == total.bytes
    assert sum(row.memory_bytes for row in rows) == MEMORY.peak_bytes
    traced_ms = (sum(BUSY.values()) + sum(HOST.values())) / 4000
    assert sum(row.time_ms for row in rows) == pytest.approx(traced_ms)
    assert sum(row.share for row in rows) == pytest.approx(traced_ms / STEP_MS)
    assert [row.time_ms for row in rows] == sorted((row.time_ms for row in rows), reverse=True)


def test_a_row_by_hand(attribution: Attribution, count: Count) -> None:
    slices = slice_step(attribution, count, CEILINGS, STEP_MS)
    rows = {row.name: row for row in module_rows(MODEL, slices, count, MEMORY, CEILINGS, STEP_MS)}
    a = rows["a"]
    assert (a.type, a.fwd_model_flops, a.bwd_model_flops, a.bytes) == ("Linear", 3 * GFLOP, 6 * GFLOP, 30 * MB)
    assert (a.time_ms, a.fwd_time_ms, a.bwd_time_ms) == pytest.approx((30.0, 15.0, 15.0))
    assert a.mfu == pytest.approx(9.0 / 30.0) and a.memory_bytes == 100 and a.verdict == "compute-bound"
    assert rows["silent"].memory_bytes == 250 and rows["silent"].verdict == "idle" and rows["silent"].mfu is None
    assert rows[OPTIMIZER].type == "phase" and rows[OPTIMIZER].verdict == "optimizer"
    assert "idle" not in rows and ROOT not in rows


def test_a_rows_roofline_and_causes(attribution: Attribution, count: Count) -> None:
    """a: 9 GFLOP at 0.5 TFLOP/s take longer than 30 MB at 100 GB/s; b and the optimizer only move."""
    slices = slice_step(attribution, count, CEILINGS, STEP_MS)
    rows = {row.name: row for row in module_rows(MODEL, slices, count, MEMORY, CEILINGS, STEP_MS)}
    assert rows["a"].attainable_ms == pytest.approx(18.0) and rows["a"].intensity == pytest.approx(300.0)
    assert rows["b"].attainable_ms == pytest.approx(1.5) and rows["b"].intensity == pytest.approx(500 / 150)
    assert rows[OPTIMIZER].attainable_ms == pytest.approx(0.4) and rows[OPTIMIZER].intensity == 0
    assert rows["silent"].attainable_ms == 0 and rows["silent"].intensity is None
    assert (rows["a"].activation_bytes, rows["b"].activation_bytes) == (60, 0)
    for row in (rows[name] for name in rows.keys() - {UNOWNED}):  # whose causes hold what the trace leaves
        assert sum(row.causes.values()) == pytest.approx(row.time_ms)


def test_all_time_of_a_repeated_forward_is_recompute(attribution: Attribution, count: Count) -> None:
    """Operators that have no FLOPs too; in the table it is backward time."""
    attribution.busy[WorkKey("a", "recompute", "gemm")] = 4_000.0
    attribution.busy[WorkKey("a", "recompute", "elementwise")] = 8_000.0
    count.work[WorkKey("a", "recompute", "gemm")] = Work(hardware=3 * GFLOP, recomputed=3 * GFLOP, bytes=10 * MB)
    slices = slice_step(attribution, count, CEILINGS, STEP_MS)
    (line,) = (line for line in ledger_lines(slices, STEP_MS) if line.cause == "recompute")
    assert line.ms == pytest.approx(3.0) and line.modules == ["a"]
    (a,) = (row for row in module_rows(MODEL, slices, count, MEMORY, CEILINGS, STEP_MS) if row.name == "a")
    assert a.bwd_time_ms == pytest.approx(15.0 + 3.0) and a.causes["recompute"] == pytest.approx(3.0)


def test_kernels_sum_to_the_busy_time() -> None:
    found = Attribution(span=200_000.0, steps=2)
    found.book(WorkKey("a", "fwd", "gemm"), ("aten::linear", "aten::addmm"), "aten::addmm", 40_000.0)
    for _ in range(3):
        found.book(WorkKey("a", "bwd", "gemm"), ("aten::mm",), "aten::mm", 20_000.0)
    found.book(WorkKey("b", "fwd", "norm"), ("aten::mm",), "aten::mm", 1_000.0)
    rows = kernel_rows(found, STEP_MS)
    shown = [(row.module, row.direction, row.operator, row.kind, row.time_ms, row.calls) for row in rows]
    assert shown == [
        ("a", "bwd", "aten::mm", "gemm", pytest.approx(15.0), 1.5),
        ("a", "fwd", "aten::addmm", "gemm", pytest.approx(10.0), 0.5),
        ("b", "fwd", "aten::mm", "norm", pytest.approx(0.25), 0.5),
    ]
    assert sum(row.time_ms for row in rows) == pytest.approx(sum(found.busy.values()) * STEP_MS / found.span)
    assert sum(found.by_operators.values()) == sum(found.busy.values())


def on_a_gpu(busy_ms: float, idle_ms: float) -> Attribution:
    """Two traced steps of these milliseconds each."""
    found = Attribution(span=2e3 * (busy_ms + idle_ms), idle=2e3 * idle_ms, steps=2, apart=True)
    found.book(WorkKey("a", "fwd", "gemm"), ("aten::mm",), "aten::mm", 2e3 * busy_ms)
    found.host["a", "fwd"] = 0.5e3 * idle_ms
    found.host["b", "bwd"] = 1.5e3 * idle_ms
    return found


@pytest.mark.parametrize(
    ("busy_ms", "idle_ms", "kernels_ms", "launch_ms"),
    [
        pytest.param(0.8 * STEP_MS, 0.6 * STEP_MS, 0.8 * STEP_MS, 0.2 * STEP_MS, id="a profiler slows the host"),
        pytest.param(0.5 * STEP_MS, 0.3 * STEP_MS, 0.625 * STEP_MS, 0.375 * STEP_MS, id="a higher clock"),
        pytest.param(1.2 * STEP_MS, 0.3 * STEP_MS, STEP_MS, 0.0, id="kernels that took longer than the step"),
        pytest.param(1.2 * STEP_MS, 0.0, STEP_MS, 0.0, id="no gap"),
        pytest.param(0.9 * STEP_MS, 0.0, STEP_MS, 0.0, id="no gap, and faster than timed"),
    ],
)
def test_a_profiler_does_not_slow_a_gpu(busy_ms: float, idle_ms: float, kernels_ms: float, launch_ms: float) -> None:
    """Its kernels take what they take; the gaps between them have what is left of the timed step."""
    found = on_a_gpu(busy_ms, idle_ms)
    slices = slice_step(found, Count(), CEILINGS, STEP_MS)
    launch = {line.cause: line for line in ledger_lines(slices, STEP_MS)}.get("launch")
    assert (launch.ms if launch else 0.0) == pytest.approx(launch_ms)
    assert sum(line.ms for line in ledger_lines(slices, STEP_MS)) == pytest.approx(STEP_MS)
    assert sum(row.time_ms for row in kernel_rows(found, STEP_MS)) == pytest.approx(kernels_ms)
    assert slices.causes["b"]["launch"] == pytest.approx(0.75 * launch_ms)


@pytest.mark.parametrize("extra", [0, 1, 70])
def test_what_is_beyond_the_longest_kernels_is_one_row(extra: int) -> None:
    """So the table still sums to the busy time, however many there are."""
    found = Attribution(span=1_000_000.0)
    for index in range(NUM_KERNELS + extra):
        found.book(WorkKey(f"m{index}", "fwd", "copy"), ("aten::copy_",), "aten::copy_", 1000.0 - index)
    rows = kernel_rows(found, STEP_MS)
    assert len(rows) == NUM_KERNELS + bool(extra)
    assert sum(row.time_ms for row in rows) == pytest.approx(sum(found.busy.values()) * STEP_MS / found.span)
    assert sum(row.calls for row in rows) == NUM_KERNELS + extra
    assert (rows[-1].module == "(others)") == bool(extra) and rows[0].module == "m0"
    if extra:
        assert rows[-1].calls == extra


def test_an_empty_trace_has_no_kernels() -> None:
    assert kernel_rows(Attribution(), STEP_MS) == []


def test_an_empty_trace_leaves_the_step_unattributed() -> None:
    (line,) = ledger_lines(slice_step(Attribution(), Count(), CEILINGS, STEP_MS), STEP_MS)
    assert (line.cause, line.ms, line.share, line.modules) == ("not_attributed", STEP_MS, 1.0, [])


keys = st.builds(
    WorkKey,
    st.sampled_from(["a", "b", "a.c", ROOT, OPTIMIZER, DATA, FORWARD, UNOWNED]),
    st.sampled_from(["fwd", "bwd", "recompute"]),
    st.sampled_from(["gemm", "norm", "copy"]),
)
sizes = st.integers(0, 10**11)


@settings(deadline=None, database=None)
@given(
    busy=st.dictionaries(keys, st.floats(0, 1e6), max_size=8),
    work=st.dictionaries(keys, st.builds(Work, model=sizes, hardware=sizes, bytes=sizes), max_size=8),
    gaps=st.dictionaries(st.tuples(st.sampled_from(["a", "b", UNOWNED]), st.just("fwd")), st.floats(0, 1e6)),
    step_ms=st.floats(0.01, 1e4),
)
def test_any_ledger_sums_to_its_step(
    busy: dict[WorkKey, float], work: dict[WorkKey, Work], gaps: dict[tuple[str, str], float], step_ms: float
) -> None:
    found, count = Attribution(span=sum(busy.values()) + sum(gaps.values())), Count()
    found.busy.update(busy)
    found.host.update(gaps)
    count.work.update(work)
    lines = ledger_lines(slice_step(found, count, CEILINGS, step_ms), step_ms)
    largest = max([step_ms, *(abs(line.ms) for line in lines)])
    assert sum(line.ms for line in lines) == pytest.approx(step_ms, abs=1e-9 * largest * max(len(lines), 1))


def test_a_function_that_the_backward_repeats_has_its_share_of_the_time() -> None:
    """The trace has both as the backward; a third of the FLOPs is the repeated forward's."""
    count, found = Count(), Attribution(span=30_000.0)
    backward, repeated = WorkKey("a", "bwd", "gemm"), WorkKey("a", "recompute", "gemm")
    count.work[backward] = Work(model=4 * GFLOP, hardware=4 * GFLOP)
    count.work[repeated] = Work(hardware=2 * GFLOP, recomputed=2 * GFLOP)
    count.work[WorkKey("b", "recompute", "gemm")] = Work(hardware=GFLOP, recomputed=GFLOP)  # of which nothing was seen
    found.busy[backward] = 30_000.0
    slices = slice_step(found, count, CEILINGS, 30.0)
    assert slices.causes["a"]["recompute"] == pytest.approx(10.0)
    assert slices.times["a"]["recompute"] == pytest.approx(10.0) and slices.times["a"]["bwd"] == pytest.approx(20.0)
    assert "b" not in slices.times


def test_an_update_needs_what_it_must_move_and_not_what_many_kernels_moved(
    attribution: Attribution, count: Count
) -> None:
    count.update_bytes = 30 * MB
    slices = slice_step(attribution, count, CEILINGS, STEP_MS)
    rows = module_rows(nn.Identity(), slices, count, MemoryPeak(0, "", {}), CEILINGS, STEP_MS)
    (row,) = (row for row in rows if row.name == OPTIMIZER)
    assert row.bytes == 40 * MB and row.attainable_ms == slices.floors["optimizer"] == pytest.approx(0.3)
    count.update_bytes = 50 * MB  # an optimizer that leaves some of its state alone
    assert slice_step(attribution, count, CEILINGS, STEP_MS).floors["optimizer"] == pytest.approx(0.4)


def test_an_optimizer_that_multiplies_needs_the_time_of_its_products(attribution: Attribution, count: Count) -> None:
    count.update_bytes = 30 * MB
    count.work[WorkKey(OPTIMIZER, "fwd", "gemm")] = Work(hardware=GFLOP)  # as Muon does
    found, computing = (
        slice_step(attribution, count, CEILINGS, STEP_MS),
        CEILINGS.flop_ms(GFLOP, CEILINGS.measured_tflops),
    )
    assert computing > 0.3 and found.floors["optimizer"] == pytest.approx(computing)


def test_data_needs_the_time_of_its_bytes(attribution: Attribution, count: Count) -> None:
    count.work[WorkKey(DATA, "fwd", "copy")] = Work(bytes=30 * MB)
    slices = slice_step(attribution, count, CEILINGS, STEP_MS)
    rows = {row.name: row for row in module_rows(MODEL, slices, count, MEMORY, CEILINGS, STEP_MS)}
    assert rows[DATA].attainable_ms == slices.floors["data"] == pytest.approx(0.3)


def test_a_module_whose_work_took_no_time_was_not_measured(attribution: Attribution, count: Count) -> None:
    count.work[WorkKey("idle", "fwd", "gemm")] = Work(model=GFLOP, hardware=GFLOP)
    slices = slice_step(attribution, count, CEILINGS, STEP_MS)
    rows = {row.name: row for row in module_rows(MODEL, slices, count, MEMORY, CEILINGS, STEP_MS)}
    assert (rows["idle"].verdict, rows["idle"].mfu, rows["idle"].time_ms) == ("not measured", None, 0.0)


def test_a_line_names_what_lies_furthest_below_its_floor_too() -> None:
    slices = Slices()
    for module, ms in {"a": 1.0, "b": -9.0, "c": 2.0, "d": 3.0}.items():
        slices.causes[module]["inefficiency.gemm"] = ms
    (line,) = ledger_lines(slices, STEP_MS)
    assert line.ms == -3.0 and line.modules == ["b", "d", "c"]
