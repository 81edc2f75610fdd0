"""The timing pass: whole steps, no hook, no profiler. Only its numbers feed MFU and the gate."""

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from time import perf_counter

import torch

WAIT_S = 0.25
TELL_S = 0.25  # between two words of progress that would be part of a step's time


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
    On CUDA the host never waits inside: events are recorded around each step and read when all have run. What
    ``progress`` takes is in the next step's time there, so that it is called a few times a second at most.
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


def time_alone(step: Callable[[int], None], *, device: torch.device, num_steps: int) -> list[float]:
    """Milliseconds of ``num_steps`` calls of ``step(index)``, each begun when the one before has ended.

    So long does who asks wait for an answer: the host's part and the device's, one after the other.
    """
    wait_for(device)
    timings = []
    for index in range(num_steps):
        start = perf_counter()
        step(index)
        wait_for(device)
        timings.append(1e3 * (perf_counter() - start))
    return timings


def time_in_turn(
    steps: Sequence[Callable[[int], None]],
    *,
    device: torch.device,
    num_rounds: int,
    warmup: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """Milliseconds of each of ``steps`` in ``num_rounds`` rounds, ``[step][round]``, after ``warmup`` rounds.

    Every round runs each of them once on the same index, in an order drawn anew (with a fixed seed), so that neither
    a machine that changes its pace nor the neighbour that ran before favours one of them.
    """
    generator = random.Random(0)
    orders = [generator.sample(range(len(steps)), len(steps)) for _ in range(num_rounds)]
    turns = [(index, which) for index, order in enumerate(orders) for which in order]
    for index in range(warmup):
        for step in steps:
            step(index)

    def turn(at: int) -> None:
        index, which = turns[at]
        steps[which](index)

    timings: list[list[float]] = [[] for _ in steps]
    found = time_steps(
        turn, device=device, num_steps=len(turns), warmup=0, progress=lambda done: progress(done // len(steps))
    )
    for (_, which), milliseconds in zip(turns, found, strict=True):
        timings[which].append(milliseconds)
    return timings


def time_in_blocks(
    steps: Sequence[Callable[[int], None]], *, device: torch.device, first: int, num_blocks: int
) -> list[list[tuple[float, float]]]:
    """Milliseconds of each of ``steps`` in blocks, ``[step][block]``: each runs twice a block, on the same index.

    A block runs them in one order and then in the reverse one, ABBA for two, the next one the other way round, so that
    a steady drift of the machine falls out of a block's ratios. Indices count from ``first`` on. Warming up is the
    caller's.
    """
    turns: list[tuple[int, int]] = []
    for block in range(first, first + num_blocks):
        order = list(range(len(steps)))[:: 1 if block % 2 == 0 else -1]
        turns += [(block, which) for which in (*order, *reversed(order))]

    def turn(at: int) -> None:
        block, which = turns[at]
        steps[which](block)

    found: list[list[list[float]]] = [[[] for _ in range(num_blocks)] for _ in steps]
    timings = time_steps(turn, device=device, num_steps=len(turns), warmup=0)
    for (block, which), milliseconds in zip(turns, timings, strict=True):
        found[which][block - first].append(milliseconds)
    return [[(before, after) for before, after in blocks] for blocks in found]


def keep_going(
    step: Callable[[int], None],
    *,
    device: torch.device,
    first: int,
    seconds: float,
    step_ms: float,
    agreed: Callable[[bool], bool] = bool,
) -> int:
    """Call ``step(index)`` from index ``first`` on until ``seconds`` are over, and say how often.

    A step takes about ``step_ms``; the host waits for the device a few times a second, so that it never runs far ahead.
    ``agreed`` makes one answer of those of several processes which must run as many steps.
    """
    end, index = perf_counter() + seconds, first
    several = max(1, round(1e3 * WAIT_S / step_ms))
    while agreed(perf_counter() < end):
        _run(step, range(index, index + several), device)
        index += several
    return index - first


def _run(step: Callable[[int], None], indices: Iterable[int], device: torch.device) -> None:
    for index in indices:
        step(index)
    wait_for(device)


def wait_for(device: torch.device) -> None:
    """Wait until ``device`` has done what it was told, where that is not so already; a kernel's fault shows then."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _with_events(step: Callable[[int], None], num_steps: int, progress: Callable[[int], None]) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(num_steps + 1)]
    events[0].record()
    told = perf_counter()
    for index in range(num_steps):
        step(index)
        events[index + 1].record()
        if perf_counter() - told > TELL_S:
            progress(index + 1)
            told = perf_counter()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(events)]
