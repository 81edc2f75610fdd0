"""The GPU's own counters against the FLOPs that a run claims."""

import pytest

from mfubench.attribute.crosscheck import cross_check
from mfubench.run import Run
from tests.mfubench.report.factory import STEP_MS, a_gpu_run, a_module, some_counters


def a_witnessed_run(hfu: float | None, active: float, dtype: str = "bf16", pipe: str = "tensor") -> Run:
    """A run whose pipe was active for ``active`` percent of the window."""
    gpm = {f"{pipe}_active_percent": active, "dram_active_percent": 50.0}
    run = a_gpu_run(nvml=some_counters(gpm=gpm), modules=[a_module("a", bytes=3_000_000_000)], hfu=hfu)
    run.peak["dtype"] = dtype
    return run


def test_hfu_and_the_pipe_are_set_side_by_side() -> None:
    found = cross_check(a_witnessed_run(0.40, 44.0))
    assert found is not None and found["contradiction"] is None
    assert (found["pipe"], found["pipe_active"], found["hfu"], found["dram_active"]) == ("tensor", 0.44, 0.40, 0.5)
    assert found["least_traffic"] == pytest.approx(3.0 / (STEP_MS / 1e3) / 3350)


@pytest.mark.parametrize(
    ("hfu", "active", "words"),
    [
        (0.60, 30.0, "HFU is 60.0% and the tensor pipe was active for 30.0% of the time: it cannot have done"),
        (0.55, 44.0, "cannot have done"),
        (0.10, 70.0, "FLOPs that are not counted"),
        (0.0, 30.0, "FLOPs that are not counted"),
    ],
)
def test_what_cannot_both_be_right_is_told(hfu: float, active: float, words: str) -> None:
    found = cross_check(a_witnessed_run(hfu, active))
    assert found is not None and words in found["contradiction"]


@pytest.mark.parametrize(
    ("hfu", "active"),
    [
        (0.40, 38.0),  # a boost clock above the datasheet's
        (0.42, 39.0),
        (0.44, 39.0),  # 1.1 times it, and two points
        (0.40, 90.0),  # instructions of half the rate
        (0.01, 5.0),  # a launch-bound step: small numbers differ by much
        (0.0, 0.0),
    ],
)
def test_what_can_is_not(hfu: float, active: float) -> None:
    found = cross_check(a_witnessed_run(hfu, active))
    assert found is not None and found["contradiction"] is None


def test_a_run_in_fp32_is_held_against_the_fp32_pipe() -> None:
    """Its products do not run on the tensor pipe, whose idleness says nothing."""
    found = cross_check(a_witnessed_run(0.40, 45.0, dtype="fp32", pipe="fp32"))
    assert found is not None and found["pipe"] == "fp32" and found["contradiction"] is None


def test_nothing_is_checked_without_a_counter_or_a_datasheet() -> None:
    assert cross_check(a_witnessed_run(None, 44.0)) is None
    assert cross_check(a_witnessed_run(0.4, 44.0, pipe="fp32")) is None
    missing = {"tensor_active_percent": {"unavailable": "not available: Not Supported"}}
    assert cross_check(a_gpu_run(nvml=some_counters(gpm=missing))) is None
    no_dram = a_witnessed_run(0.4, 44.0)
    no_dram.nvml["gpm"]["dram_active_percent"] = {"unavailable": "not available: Not Supported"}
    found = cross_check(no_dram)
    assert found is not None and found["dram_active"] is None
