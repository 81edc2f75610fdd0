"""The least step: the longer of FLOPs and bytes for each group of operators, by cause, and at another run's rates."""

from dataclasses import replace

import pytest

from mfubench.attribute.roofline import Ceilings
from mfubench.measure.count import RECOMPUTE, Count, Work, WorkKey
from mfubench.planning.least import at_rates, least_step, rates_of
from mfubench.run import KernelRow
from tests.mfubench.report.factory import a_run

CEILINGS = Ceilings(in_use_tflops=2.0, measured_tflops=1.0, bandwidth_gb_s=100.0, by_dtype={"bf16": 1.0, "fp32": 0.1})
TERA, GIGA = 10**12, 10**9


def counted() -> Count:
    """10 ms of products, 20 of bytes, 4 of scores again, 5 of the optimizer's bytes; products in fp32 take 30."""
    count = Count()
    count.work[WorkKey("a", "fwd", "gemm")] = Work(model=TERA // 100, hardware=TERA // 100, bytes=GIGA // 2)
    count.work[WorkKey("a", "fwd", "norm")] = Work(bytes=2 * GIGA)
    count.work[WorkKey("a", RECOMPUTE, "attention")] = Work(hardware=TERA // 250, recomputed=TERA // 250)
    count.work[WorkKey("(optimizer)", "fwd", "other")] = Work(bytes=GIGA // 2)
    slow = Work(model=3 * GIGA, hardware=3 * GIGA, dtypes={"float32": 3 * GIGA})
    count.work[WorkKey("b", "bwd", "gemm")] = slow
    return count


def test_each_group_takes_the_longer_of_its_flops_and_its_bytes() -> None:
    least = least_step(counted(), CEILINGS)
    assert least.by_kind == pytest.approx({"gemm": 40.0, "norm": 20.0, "attention": 4.0, "optimizer": 5.0})
    assert least.step_ms == pytest.approx(69.0)


def test_its_ledger_adds_up_to_it_and_has_no_inefficiency() -> None:
    least = least_step(counted(), CEILINGS)
    ms = {line.cause: line.ms for line in least.ledger}
    assert sum(ms.values()) == pytest.approx(least.step_ms)
    assert ms["memory_bound.norm"] == pytest.approx(20.0) and ms["recompute"] == pytest.approx(4.0)
    assert ms["useful"] == pytest.approx(6.5) and ms["peak_gap"] == pytest.approx(6.5)
    assert ms["dtype"] == pytest.approx(27.0) and ms["optimizer"] == pytest.approx(5.0)
    assert not any(cause.startswith("inefficiency") for cause in ms)


def test_an_optimizers_products_take_time_too() -> None:
    """As Muon's do: they are no model FLOPs, and the step is no shorter for that."""
    count = Count()
    count.work[WorkKey("(optimizer)", "fwd", "gemm")] = Work(hardware=TERA // 100, bytes=GIGA // 2)
    least = least_step(count, CEILINGS)
    assert least.by_kind == pytest.approx({"optimizer": 10.0})
    assert [(line.cause, line.ms) for line in least.ledger] == [("optimizer", pytest.approx(10.0))]


def test_nothing_takes_no_time() -> None:
    least = least_step(Count(), CEILINGS)
    assert (least.step_ms, least.ledger, least.by_kind) == (0, [], {})


def test_a_step_at_a_runs_rates_takes_as_long_as_that_run_did() -> None:
    least = least_step(counted(), CEILINGS)
    took = [
        KernelRow("a", "fwd", "mm", "gemm", 50.0, 1.0),
        KernelRow("b", "bwd", "mm", "gemm", 30.0, 1.0),
        KernelRow("a", "fwd", "norm", "norm", 16.0, 1.0),
        KernelRow("(optimizer)", "fwd", "adam", "other", 10.0, 1.0),
        KernelRow("c", "fwd", "copy", "copy", 7.0, 1.0),
    ]
    rates = rates_of(replace(a_run(), kernels=took), least)
    assert rates == pytest.approx({"gemm": 0.5, "norm": 1.25, "optimizer": 0.5})
    assert at_rates(least, rates) == pytest.approx(
        80.0 + 16.0 + 10.0 + 4.0
    )  # attention, of which it had none, its least
