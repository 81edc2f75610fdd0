"""Time several calls against each other on a GPU: in turns, so that what drifts, drifts for all."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch

from mfubench.measure.timing import time_in_turn, time_steps
from mfubench.worker import UNWATCHED

SAMPLE_MS = 4.0  # one sample is as many calls as fill this, so that an event's resolution does not show
WARMUP_CALLS = 3
MAX_CALLS = 50

Call = Callable[[], object]


def time_in_turns(
    calls: Mapping[str, Call],
    *,
    rounds: int,
    part: Callable[[str], AbstractContextManager[None]] = UNWATCHED.part,
) -> dict[str, list[float]]:
    """Milliseconds of one call, ``rounds`` samples of each; warming one up runs inside ``part`` of its name."""
    device = torch.device("cuda")
    repeats = []
    for name, call in calls.items():
        with part(name):
            repeats.append(_calls_a_sample(call, device))
    steps = [_repeated(call, times) for call, times in zip(calls.values(), repeats, strict=True)]
    samples = time_in_turn(steps, device=device, num_rounds=rounds, warmup=0)
    return {
        name: [milliseconds / times for milliseconds in own]
        for name, times, own in zip(calls, repeats, samples, strict=True)
    }


def _repeated(call: Call, times: int) -> Callable[[int], None]:
    def run(_index: int) -> None:
        for _ in range(times):
            call()

    return run


def _calls_a_sample(call: Call, device: torch.device) -> int:
    (once,) = time_steps(_repeated(call, 1), device=device, num_steps=1, warmup=WARMUP_CALLS)
    return max(1, min(MAX_CALLS, round(SAMPLE_MS / once))) if once else MAX_CALLS
