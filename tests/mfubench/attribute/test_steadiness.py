"""What bounds a run's claims: a device that was shared, moved its clocks, was throttled, or had two paces."""

from typing import Any

import pytest

from mfubench.attribute.steadiness import unsteady
from tests.mfubench.report.factory import a_gpu_run, a_run, some_counters

STEADY = some_counters()["counters"]


def seen(**counters: Any) -> dict[str, Any]:
    """What NVML saw beside a run that had a steady device to itself, but for ``counters``."""
    return some_counters(counters=STEADY | counters)


def held(share: float) -> dict[str, float]:
    return {"ms": 6100 * share, "share": share}


UNSTEADY = {
    "clocks": (seen(sm_clock_mhz={"min": 1200.0, "mean": 1500.0, "max": 1755.0}), "between 1200 and 1755 MHz"),
    "neighbours": (seen(other_processes={"min": 0.0, "mean": 0.2, "max": 1.0}), "another process was on the GPU"),
    "throttling": (
        some_counters(clock_events={"seen": {"sw_power_cap": held(0.5), "gpu_idle": held(0.1)}}),
        "the clock was held down: sw_power_cap 50% of the time",
    ),
    "a limit that no sample saw": (
        some_counters(limits={"power": held(0.0), "thermal": held(0.02), "board": {"unavailable": "no field"}}),
        "the clock was held down: thermal limit 2% of the time",
    ),
    "a contradiction": (some_counters(cross_check={"contradiction": "HFU is 60 %"}), "HFU is 60 %"),
}


@pytest.mark.parametrize("case", UNSTEADY)
def test_what_disturbed_a_run_is_told(case: str) -> None:
    nvml, words = UNSTEADY[case]
    (warning,) = unsteady(a_gpu_run(nvml=nvml))
    assert words in warning


def test_a_few_slow_steps_are_told() -> None:
    """The MFU is of all steps, the ledger of the median one: where they part, both need the warning."""
    (warning,) = unsteady(a_run(step={"timings_ms": [10.0] * 9 + [40.0], "time_ms": {"median": 10.0}}))
    assert "the mean step is 1.30 times the median one" in warning


def test_timings_too_few_for_their_interval_are_told() -> None:
    """Five would claim 95 % and hold the median in 94 of 100 runs."""
    (warning,) = unsteady(a_run(step={"timings_ms": [10.0] * 5, "time_ms": {"median": 10.0}}))
    assert "5 timed steps: even their whole range holds the median in 94%" in warning and "--steps 6" in warning
    assert unsteady(a_run(step={"timings_ms": [10.0] * 6, "time_ms": {"median": 10.0}})) == []


def test_a_run_that_was_not_disturbed_has_no_warning() -> None:
    missing = {"unavailable": "not available: no such counter"}
    quiet = [a_run(), a_gpu_run()]
    quiet += [a_gpu_run(nvml=seen(sm_clock_mhz=missing, other_processes=missing) | {"clock_events": missing})]
    assert [unsteady(run) for run in quiet] == [[], [], []]


TWO_PACES = [10.0, 10.1, 9.9, 12.9, 13.1, 10.0, 13.0, 12.9, 10.1, 9.9] * 2


def test_two_paces_are_told() -> None:
    run = a_run(step={"timings_ms": TWO_PACES, "time_ms": {"median": 10.1}, "num_input_sets": 4})
    (warning,) = unsteady(run)
    assert "two modes, 12 steps around 10 ms and 8 around 12.95 ms" in warning


def test_paces_that_the_input_sets_explain_are_not() -> None:
    """A long and a short batch in turn are two modes, as they should be."""
    timings = [10.0, 13.0, 10.1, 13.1] * 5
    run = a_run(step={"timings_ms": timings, "time_ms": {"median": 11.5}, "num_input_sets": 2})
    assert unsteady(run) == []
    run.step["num_input_sets"] = 3
    assert len(unsteady(run)) == 1


def test_paces_within_one_input_set_are_not_explained_by_another_that_is_even() -> None:
    """The first set's steps are all fast; of the second one's every other is slow."""
    timings = [10.0, 10.1, 9.9, 13.0] * 6
    run = a_run(step={"timings_ms": timings, "time_ms": {"median": 10.0}, "num_input_sets": 2})
    (warning,) = unsteady(run)
    assert "two modes, 18 steps around 10 ms and 6 around 13 ms" in warning
