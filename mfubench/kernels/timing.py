"""Time several calls against each other on a GPU: in turns, so that what drifts, drifts for all."""

from collections.abc import Callable, Mapping

import torch

SAMPLE_MS = 4.0  # one sample is as many calls as fill this, so that an event's resolution does not show
WARMUP_CALLS = 3
MAX_CALLS = 50

Call = Callable[[], object]


def time_in_turns(calls: Mapping[str, Call], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of one call, ``rounds`` samples of each, the order turned around in every other round."""
    repeats = {name: _calls_a_sample(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            samples[name].append(event_ms(calls[name], repeats[name]))
    return samples


def _calls_a_sample(call: Call) -> int:
    for _ in range(WARMUP_CALLS):
        call()
    once = event_ms(call, 1)
    return max(1, min(MAX_CALLS, round(SAMPLE_MS / once))) if once else MAX_CALLS


def event_ms(call: Call, repeats: int) -> float:
    """Milliseconds of one of ``repeats`` calls in a row, between two events of the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / repeats
