"""What ranks say to each other: which of that time no work hides, and whose it is."""

import pytest
from torch import nn

from mfubench.attribute.attribution import Attribution
from mfubench.attribute.hotspots import hotspots
from mfubench.attribute.ledger import kernel_rows, ledger_lines, module_rows, slice_step
from mfubench.attribute.roofline import Ceilings
from mfubench.attribute.waits import WAIT, merged, overlaps, waits
from mfubench.measure.classify import communicates, may_hide_flops, op_class
from mfubench.measure.count import Count, WorkKey
from mfubench.measure.memory import MemoryPeak
from mfubench.measure.scopes import BACKWARD, COMMUNICATION, FORWARD, Scope
from tests.mfubench.attribute.by_hand import STEP, Known, joined, kernel, launch, node, scope, span

GLOO, OTHER_GLOO = 3, 4  # threads
NCCL = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"


@pytest.fixture
def on_a_cpu() -> Attribution:
    tracker = Known(Scope(0, FORWARD), Scope(1, "a"), Scope(2, BACKWARD), owners={9: 1})
    events = [
        *(span(STEP, 0, 100, "user_annotation"), scope(0, FORWARD, 10, 50), scope(1, "a", 14, 30)),
        *(span("aten::linear", 16, 10), span("c10d::alltoall_base_", 26, 2)),
        span("gloo:all_to_all", 24, 12, "user_annotation", GLOO),  # alone from 28 on
        *(scope(2, BACKWARD, 60, 36), node("AddmmBackward0", 62, 8, 9), span("aten::mm", 64, 6)),
        span("gloo:all_reduce", 66, 16, "user_annotation", GLOO),  # alone from 70 on
        span("gloo:all_reduce", 76, 12, "cpu_op", OTHER_GLOO),  # and together until 88
        span("gloo:barrier", 200, 30, "user_annotation", GLOO),  # after the step
    ]
    return joined(events, tracker, "cpu")


def test_a_thread_that_waits_for_ranks_is_told_from_one_that_issues_work(on_a_cpu: Attribution) -> None:
    assert on_a_cpu.communication == {("a", "fwd"): 2 + 8, (COMMUNICATION, "bwd"): 18}
    assert on_a_cpu.talking == 12 + 22  # hidden or not, those of two threads once
    assert on_a_cpu.busy == {WorkKey("a", "fwd", "gemm"): 10, WorkKey("a", "bwd", "gemm"): 6}


def test_the_parts_add_up_with_it(on_a_cpu: Attribution) -> None:
    parts = (on_a_cpu.busy, on_a_cpu.host, on_a_cpu.communication)
    assert sum(sum(part.values()) for part in parts) == on_a_cpu.span == 100
    assert on_a_cpu.idle == sum(on_a_cpu.host.values()) == 100 - 16 - 28


@pytest.fixture
def on_a_gpu() -> Attribution:
    tracker = Known(Scope(0, "a"), Scope(1, BACKWARD), owners={9: 0})
    events = [
        *(span(STEP, 0, 130, "user_annotation"), scope(0, "a", 1, 20)),
        *(span("aten::mm", 2, 3), launch(1, 3), kernel(1, 10, 20)),
        *(span("c10d::alltoall_base_", 6, 3), launch(2, 7), kernel(2, 20, 30, name=NCCL)),
        *(span("aten::relu", 12, 3), launch(3, 13), kernel(3, 40, 20)),  # hides 10 of the 20 that are left
        *(scope(1, BACKWARD, 30, 60), node("MmBackward0", 31, 9, 9)),
        *(span("aten::mm", 32, 3), launch(4, 33), kernel(4, 70, 10)),
        *(span("c10d::allreduce_", 36, 3), launch(5, 37), kernel(5, 75, 25, name=NCCL)),  # the last that runs
    ]
    return joined(events, tracker, "cuda")


def test_a_collective_on_a_gpu_has_what_no_other_kernel_takes(on_a_gpu: Attribution) -> None:
    assert on_a_gpu.busy == {
        WorkKey("a", "fwd", "gemm"): 20,
        WorkKey("a", "fwd", "elementwise"): 20,
        WorkKey("a", "bwd", "gemm"): 10,
    }
    assert on_a_gpu.communication == {("a", "fwd"): 10, (COMMUNICATION, "bwd"): 20}
    assert on_a_gpu.talking == 30 + 25
    assert on_a_gpu.idle == 10 == on_a_gpu.host["a", "bwd"]  # between 60 and 70 nothing runs at all
    assert on_a_gpu.span == 50 + 30 + 10 == 100 - 10


def test_it_is_a_line_of_the_ledger_and_a_hotspot_with_the_names_of_collectives(on_a_gpu: Attribution) -> None:
    """At a step of 90 ms, 1000 times as long as the trace: its lines are the trace's microseconds."""
    ceilings = Ceilings(1.0, 1.0, 1.0, {})
    slices = slice_step(on_a_gpu, Count(), ceilings, 90.0)
    lines = {line.cause: line for line in ledger_lines(slices, 90.0)}
    assert lines["communication"].ms == pytest.approx(30) and lines["launch"].ms == pytest.approx(10)
    assert lines["communication"].modules == [COMMUNICATION, "a"]
    assert sum(line.ms for line in lines.values()) == pytest.approx(90)
    kernels = kernel_rows(on_a_gpu, 90.0)
    rows = module_rows(nn.Identity(), slices, Count(), MemoryPeak(0, "", {}), ceilings, 90.0)
    assert {row.name: row.verdict for row in rows}[COMMUNICATION] == "communication-bound"
    spots = [spot for spot in hotspots(rows, kernels, slices.floors, 90.0) if spot["cause"] == "communication"]
    assert [(spot["module"], spot["won_ms"]) for spot in spots] == [
        (COMMUNICATION, pytest.approx(20)),
        ("a", pytest.approx(10)),
    ]
    assert list(spots[0]["operators"]) == ["ncclDevKernel_AllReduce_Sum_f32_RING_LL"]


def test_spans_of_waiting_nest_among_the_others() -> None:
    """One that is open over the end of a scope is cut there, and where an operator runs there is none."""
    events = [scope(0, "a", 0, 50), scope(1, "b", 60, 40), span("aten::mm", 70, 10), node("Mm", 20, 10, 1)]
    found = [(event["ts"], event["ts"] + event["dur"]) for event in waits(events, [(40, 90)])]
    assert found == [(40, 50), (50, 60), (60, 70), (80, 90)]
    assert {event["name"] for event in waits(events, [(40, 90)])} == {WAIT}
    assert [(event["ts"], event["dur"]) for event in waits(events, [(22, 28)])] == [(22, 6)]  # in a node, by its hook


def test_intervals() -> None:
    assert merged([(5, 7), (0, 2), (1, 3), (7, 8)]) == [(0, 3), (5, 8)]
    assert list(overlaps((2, 6), [(0, 3), (5, 8)])) == [(0, (2, 3)), (1, (5, 6))]
    assert list(overlaps((3, 5), [(0, 3), (5, 8)])) == []


@pytest.mark.parametrize(
    "name",
    ["c10d::allreduce_", "_c10d_functional::wait_tensor", "symm_mem::one_shot_all_reduce", NCCL, "nvshmem_put_kernel"],
)
def test_what_communicates_hides_no_flops(name: str) -> None:
    assert communicates(name) and not may_hide_flops(name.partition("(")[0])


@pytest.mark.parametrize("name", ["aten::mm", "mylib::allreduce_then_multiply", "fsdp::chunk_cat", "void gemm_nccl()"])
def test_what_does_not(name: str) -> None:
    assert not communicates(name)


def test_what_packs_for_a_collective_is_a_copy() -> None:
    assert op_class("fsdp::all_gather_copy_in") == "copy" and not may_hide_flops("fsdp::all_gather_copy_in")
