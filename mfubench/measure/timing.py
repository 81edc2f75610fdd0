"""The timing pass: whole steps, no hook, no profiler. Only its numbers feed MFU and the gate."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from time import perf_counter

import torch

WAIT_S = 0.25


def time_steps(
    step: Callable[[int], None],
    *,
    device: torch.device,
    num_steps: int,
    warmup: int,
    started: Callable[[], object] = lambda: None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Milliseconds of ``num_steps`` calls of ``step(index)`` after ``warmup`` calls that are not counted.

    ``started`` is called between the two, when the device has done the warm-up.
    On CUDA the host never waits inside: events are recorded around each step and read when all have run.
    """
    _run(step, range(warmup), device)
    started()
    if device.type == "cuda":
        return _with_events(step, num_steps, progress)
    timings = []
    for index in range(num_steps):
        start = perf_counter()
        step(index)
        timings.append(1e3 * (perf_counter() - start))
        progress(index + 1)
    return timings


def keep_going(step: Callable[[int], None], *, device: torch.device, first: int, seconds: float, step_ms: float) -> int:
    """Call ``step(index)`` from index ``first`` on until ``seconds`` are over, and say how often.

    A step takes about ``step_ms``; the host waits for the device a few times a second, so that it never runs far ahead.
    """
    end, index = perf_counter() + seconds, first
    several = max(1, round(1e3 * WAIT_S / step_ms))
    while perf_counter() < end:
        _run(step, range(index, index + several), device)
        index += several
    return index - first


def _run(step: Callable[[int], None], indices: Iterable[int], device: torch.device) -> None:
    for index in indices:
        step(index)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _with_events(step: Callable[[int], None], num_steps: int, progress: Callable[[int], None]) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(num_steps + 1)]
    events[0].record()
    for index in range(num_steps):
        step(index)
        events[index + 1].record()
        progress(index + 1)
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(events)]
