"""What the passes of a profile come to in a Run, on passes written by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from mfu_models.common.flops import FlopCount
from mfubench.assemble import assemble
from mfubench.attribute.attribution import Attribution
from mfubench.attribute.roofline import Ceilings
from mfubench.measure.calibrate import Calibration
from mfubench.measure.count import Collective, Count, Work, WorkKey
from mfubench.measure.memory import MemoryPeak
from mfubench.measure.scopes import OPTIMIZER, ROOT
from mfubench.passes import Passes
from mfubench.ranks import Ranks
from mfubench.run import Run
from mfubench.workload.spec import Workload, WorkloadSpec

GEMM = WorkKey(ROOT, "fwd", "gemm")
GFLOP = 10**9


def a_count(model: int, hardware: int | None = None, **other: Any) -> Count:
    """A step that does ``model`` FLOPs, and executes as many unless told otherwise."""
    count = Count(**other)
    count.work[GEMM] = Work(model=model, padded=model, hardware=model if hardware is None else hardware)
    return count


def some_passes(*counts: Count, timings_ms: list[float], **other: Any) -> Passes:
    """On a device that multiplies 0.5 TFLOP/s at best, of the 1 that its datasheet says."""
    calibration = Calibration("by hand", {"fp32": 0.5}, 100.0, {}, "2026-02-03", "2.11", 1, "by hand")
    return Passes(
        timings_ms=timings_ms,
        nvml={"available": False, "reason": "no driver"},
        sheet_tflops=1.0,
        sheet=None,
        calibration=calibration,
        ceilings=Ceilings(1.0, 0.5, 100.0, {"fp32": 0.5}),
        device_peak=None,
        compilation=None,
        trace_path=None,
        counts=list(counts),
        missing={},
        **other,
    )


def assembled(passes: Passes, requests: list[int], **other: Any) -> Run:
    """The Run of so many steps as were timed, in turn over input sets of so many ``requests``."""
    workload = Workload(
        spec=WorkloadSpec("by_hand", steps=len(passes.timings_ms)),
        description={"mode": "train", "dtype": "fp32", "device": "cpu"},
        device=torch.device("cpu"),
        dtype="fp32",
        module=nn.Linear(2, 2),
        inputs=list(range(len(requests))),
        num_samples=requests,
        forward=lambda module, batch: pytest.fail("nothing runs any more"),
        loss=lambda output, batch: pytest.fail("nothing runs any more"),
        to_device=lambda batch: batch,
        optimizers=[],
        **other,
    )
    return assemble(workload, passes)


def test_an_input_set_weighs_as_often_as_it_was_timed() -> None:
    """Three steps over two sets ran the first one twice: (2 x 100 + 300) / 3, (2 x 30 + 90) / 3."""
    counts = [a_count(100), a_count(300)]
    for count, num_bytes in zip(counts, (30, 90), strict=True):
        count.work[WorkKey(OPTIMIZER, "fwd", "other")] = Work(bytes=num_bytes)
    run = assembled(some_passes(*counts, timings_ms=[10.0] * 3), [1, 1])
    assert run.flops["model"] == run.flops["hardware"] == 167
    rows = {row.name: row for row in run.modules}
    assert (rows[ROOT].fwd_model_flops, rows[OPTIMIZER].bytes) == (167, 50)


def test_what_an_update_must_move_is_the_mean_steps() -> None:
    """(2 x 30 + 90) / 3 MB at 100 GB/s are the half millisecond of the optimizer's two that nothing wins back."""
    trace = Attribution(span=30_000.0, steps=3)
    trace.busy[WorkKey(OPTIMIZER, "fwd", "other")] = 6_000.0
    counts = [a_count(0, update_bytes=30 * 10**6), a_count(0, update_bytes=90 * 10**6)]
    for count in counts:
        count.work[WorkKey(OPTIMIZER, "fwd", "other")] = Work(bytes=180 * 10**6)  # by many kernels
    run = assembled(some_passes(*counts, timings_ms=[10.0] * 3, attribution=trace), [1, 1])
    (spot,) = [spot for spot in run.hotspots if spot["module"] == OPTIMIZER]
    assert (spot["time_ms"], spot["won_ms"]) == pytest.approx((2.0, 1.5))


def test_ranks_talk_as_much_as_in_the_mean_step() -> None:
    """Six calls of 40 bytes in a step, and three of 10 in the next: (2 x 6 + 3) / 3 and (2 x 40 + 10) / 3."""
    counts = [a_count(1), a_count(1)]
    for count, calls, num_bytes in zip(counts, (6, 3), (40, 10), strict=True):
        count.collectives["c10d::allreduce_"] = Collective(calls, num_bytes)
    passes = some_passes(*counts, timings_ms=[10.0] * 3)
    run = assembled(passes, [1, 1], ranks=Ranks(0, 2))
    assert run.parallel is not None
    assert run.parallel["collectives"] == [{"name": "c10d::allreduce_", "calls": 5.0, "bytes": 30.0}]


def test_rates_are_those_of_the_mean_step() -> None:
    """Three steps of 4 requests in 60 ms, though the median step took 10; each does 2 GFLOP, of 1 and 0.5 TFLOP/s."""
    passes = some_passes(a_count(2 * GFLOP, 4 * GFLOP), timings_ms=[10.0, 10.0, 40.0])
    run = assembled(passes, [4], num_candidates=5)
    assert run.step["time_ms"]["median"] == 10.0
    assert run.step["samples_per_s"] == run.step["requests_per_s"] == pytest.approx(3 * 4 / 0.06)
    assert run.step["candidates_per_s"] == pytest.approx(3 * 4 * 5 / 0.06)
    assert run.mfu == pytest.approx(0.1) and run.mfu_of_measured_peak == pytest.approx(0.2)
    assert run.flops["per_request"] == GFLOP / 2 and run.flops["per_candidate"] == GFLOP / 10


def test_hfu_is_of_what_was_executed() -> None:
    """Twice as much as was useful."""
    run = assembled(some_passes(a_count(2 * GFLOP, 4 * GFLOP), timings_ms=[10.0] * 3), [4])
    assert (run.mfu, run.hfu) == pytest.approx((0.2, 0.4))
    assert (run.mfu_of_measured_peak, run.hfu_of_measured_peak) == pytest.approx((0.4, 0.8))


def test_without_a_datasheet_only_the_measured_peak_has_a_share() -> None:
    passes = some_passes(a_count(2 * GFLOP, 4 * GFLOP), timings_ms=[10.0] * 3)
    passes.sheet_tflops = None
    run = assembled(passes, [4])
    assert run.mfu is None and run.hfu is None and run.hfu_of_measured_peak == pytest.approx(0.8)


def test_padded_is_what_rows_as_long_as_the_longest_would_need() -> None:
    """Five steps over four sets take the first one twice: (2 x 100 + 200 + 300 + 400) / 5."""
    longest = [100, 200, 300, 400]

    def needed(batch: int) -> tuple[FlopCount, FlopCount]:
        return FlopCount(10, 20), FlopCount(longest[batch] - 20, 20)

    run = assembled(some_passes(*[a_count(30)] * 4, timings_ms=[10.0] * 5), [1] * 4, needed=needed)
    assert (run.flops["model"], run.flops["padded"]) == (30, 220)


def test_without_a_closed_form_padded_is_what_the_ops_tell() -> None:
    count = a_count(30)
    count.work[GEMM].padded = 70
    run = assembled(some_passes(count, timings_ms=[10.0]), [1])
    assert run.flops["padded"] == 70 and run.flops["counts_agree"] is None


def test_distortion_is_a_traced_step_over_a_timed_one() -> None:
    """30 ms in three traced steps are as long as 10 ms in one."""
    trace = Attribution(span=30_000.0, steps=3)
    trace.busy[GEMM] = 24_000.0
    run = assembled(some_passes(a_count(1), timings_ms=[10.0, 10.0], attribution=trace), [1])
    assert run.trace == {"steps": 3, "distortion": 1.0, "attributed_share": 1.0, "path": None, "operators": []}


def test_what_no_count_knows_is_the_share_of_its_time_that_coverage_lacks() -> None:
    trace = Attribution(span=8_000.0)
    trace.book(GEMM, ("aten::linear", "aten::addmm"), "aten::addmm", 6_000.0)
    trace.book(GEMM, ("mine::product", "aten::copy_"), "aten::copy_", 2_000.0)
    count = a_count(1, unknown_ops={"mine::product"})
    run = assembled(some_passes(count, timings_ms=[8.0], attribution=trace), [1])
    assert run.flops["coverage"] == pytest.approx(0.75)


def test_a_pass_that_brought_nothing_leaves_no_zeros() -> None:
    passes = some_passes(timings_ms=[10.0])
    passes.counts, passes.memory = None, MemoryPeak(700, "(forward)", {"parameters": 700})
    run = assembled(passes, [1])
    assert run.flops["model"] is run.flops["hardware"] is run.mfu is run.hfu_of_measured_peak is None
    assert run.trace == {"steps": 0, "distortion": None, "attributed_share": None, "path": None, "operators": []}
    assert run.flops["coverage"] is None and run.memory["peak_bytes"] == 700
