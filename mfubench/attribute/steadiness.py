"""Whether a run had its device to itself, and whether the device kept its pace."""

from collections.abc import Sequence
from statistics import fmean, median

from mfubench.measure.stats import bimodal
from mfubench.run import Run

MAX_MEAN_OF_MEDIAN, MIN_CLOCK_SHARE = 1.15, 0.95
FEWEST_STEPS = 6  # the least number of timings whose whole range holds the median in 95 of 100 runs
HARMLESS_CLOCK_EVENTS = ("gpu_idle", "applications_clocks_setting", "display_clock_setting")


def unsteady(run: Run) -> list[str]:
    """What says that the device or the host was not the run's alone, or did not keep its pace."""
    found = []
    timings = run.step["timings_ms"]
    if len(timings) < FEWEST_STEPS:
        sure = 1 - 0.5 ** (len(timings) - 1)
        found.append(
            f"{len(timings)} timed steps: even their whole range holds the median in {sure:.0%} of such runs at most, "
            f"no interval of theirs in 95 %; --steps {FEWEST_STEPS} or more"
        )
    if (times := much_slower(timings)) is not None:
        found.append(f"some steps were much slower: the mean step is {times:.2f} times the median one")
    found += _two_paces(timings, run.step.get("num_input_sets", 1))
    counters = run.nvml.get("counters", {})
    clock = counters.get("sm_clock_mhz", {})
    if clock.get("max") and clock["min"] < MIN_CLOCK_SHARE * clock["max"]:
        found.append(f"the SM clock moved between {clock['min']:.0f} and {clock['max']:.0f} MHz")
    if counters.get("other_processes", {}).get("max"):
        found.append("another process was on the GPU")
    events = run.nvml.get("clock_events", {}).get("seen", {})
    throttled = {name: held for name, held in events.items() if name not in HARMLESS_CLOCK_EVENTS}
    throttled |= {f"{name} limit": held for name, held in run.nvml.get("limits", {}).items() if held.get("ms")}
    if throttled:
        listed = ", ".join(f"{name} {held['share']:.0%} of the time" for name, held in throttled.items())
        found.append(f"the clock was held down: {listed}")
    contradiction = (run.nvml.get("cross_check") or {}).get("contradiction")
    return [*found, *([contradiction] if contradiction else [])]


def much_slower(timings: Sequence[float]) -> float | None:
    """How many times the median one the mean step is, where some are much slower than others; else None."""
    times = fmean(timings) / median(timings)
    return times if times > MAX_MEAN_OF_MEDIAN else None


def _two_paces(timings: list[float], num_input_sets: int) -> list[str]:
    """Steps in two groups that their input sets do not explain, which are what the steps take in turn."""
    modes = bimodal(timings)
    if modes is None or all(len(set(modes.is_slow[first::num_input_sets])) == 1 for first in range(num_input_sets)):
        return []
    slow = sum(modes.is_slow)
    return [
        f"the timings have two modes, {len(timings) - slow} steps around {modes.fast:.4g} ms and {slow} around "
        f"{modes.slow:.4g} ms: the median stands for neither"
    ]
