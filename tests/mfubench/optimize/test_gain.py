"""What counts as faster: on numbers made by hand, and on the recorded noise of a step timed against itself."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfubench.measure.effect import ALPHA, log_ratios
from mfubench.optimize.gain import LOOKS, Gain, measure_gain
from mfubench.optimize.search import optimize
from mfubench.optimize.state import Plan
from mfubench.optimize.tasks import finale, profile_changed, take_stock
from mfubench.optimize.trial import Request, Trial, confirm, judge_time
from mfubench.workload.spec import WorkloadSpec
from tests.mfubench.optimize.answers import IDENTITY, Answers, start, survey

FILE = Path(__file__).with_name("recorded_noise.json")
RECORDED = json.loads(FILE.read_text())["microseconds"] if FILE.exists() else []
needs_recording = pytest.mark.skipif(not RECORDED, reason=f"no {FILE.name}; record it with record_noise.py")
SEARCHES, MAX_WRONG = 200, 0.01


@pytest.mark.parametrize(
    ("logs", "verdict"),
    [([0.2] * 16, "faster"), ([-0.2] * 16, "not faster"), ([0.005] * 16, "not faster"), ([-0.1, 0.2] * 8, "open")],
)
def test_verdicts(logs: list[float], verdict: str) -> None:
    assert Gain.of(logs, ALPHA).verdict == verdict


def test_it_looks_until_it_can_say() -> None:
    asked: list[tuple[int, int]] = []

    def blocks(first: int, count: int, value: float) -> list[float]:
        asked.append((first, count))
        slow = 0.08 if first < 16 else 0.0  # a quarter of the first look, too many to say
        return [value - slow * (at % 4 == 0) for at in range(count)]

    logs = measure_gain(lambda first, count: blocks(first, count, 0.05), ALPHA)
    assert asked == [(0, 16), (16, 16)] and len(logs) == 32
    asked.clear()
    assert len(measure_gain(lambda first, count: blocks(first, count, -0.5), ALPHA)) == LOOKS[0]


@pytest.mark.parametrize(("slow", "blocks"), [(2, 16), (3, 32)])
def test_its_looks_share_alpha(slow: int, blocks: int) -> None:
    """A third of 5 % leaves two of 16 blocks outside; all of it would leave three."""
    logs = iter([0.0] * slow + [0.05] * 61)
    assert len(measure_gain(lambda first, count: [next(logs) for _ in range(count)], ALPHA)) == blocks
    assert Gain.of([0.0] * 3 + [0.05] * 13, ALPHA).verdict == "faster"


def test_it_asks_whether_there_is_time_for_what_is_left_to_the_next_look() -> None:
    asked: list[int] = []

    def time_for(count: int) -> bool:
        asked.append(count)
        return True

    unsure = [-0.1, 0.2]
    assert len(measure_gain(lambda first, count: unsure * (count // 2), ALPHA, time_for)) == 64 and asked == [16, 32]
    assert len(measure_gain(lambda first, count: unsure * (count // 2), ALPHA, lambda _count: False)) == 16


# Recorded noise ---------------------------------------------------------------------------------------------------


def draw(generator: random.Random, process: int) -> Iterator[float]:
    """Log ratios of successive blocks of one process, from anywhere on; which arm is the old one is drawn."""
    arms = RECORDED[process]
    old, new = generator.sample(range(len(arms)), 2)
    place = generator.randrange(len(arms[0]))
    while True:
        block = place % len(arms[0])
        yield from log_ratios([arms[old][block]], [arms[new][block]], lambda _block: 1.0)
        place += 1


class Replay:
    """Ten candidates that change nothing, timed by what was recorded."""

    def __init__(self, seed: int, shift: float = 0.0) -> None:
        self.random, self.shift = random.Random(seed), shift
        self.process: int | None = None

    def __call__(self, task: Any, argument: Any, **_limits: Any) -> Any:
        if task is take_stock:
            return IDENTITY, start(), replace(survey(), regions={f"pkg.Block{at}": ["towers"] for at in range(10)})
        if task in (finale, profile_changed):
            return Answers()(task, argument, limit_s=1.0)
        return self.time(argument, fresh=task is confirm)

    def time(self, request: Request, *, fresh: bool) -> Trial:
        others = [at for at in range(len(RECORDED)) if not (fresh and at == self.process)]
        self.process = self.random.choice(others)
        noise = draw(self.random, self.process)
        logs = measure_gain(lambda first, count: [next(noise) + self.shift for _ in range(count)], request.alpha)
        return Trial(refused=judge_time(logs, request.alpha), logs=logs, old_ms=10.0)


def replayed(seed: int, shift: float = 0.0) -> tuple[int, int]:
    """How many of the candidates were tried and kept."""
    found = optimize(Plan(WorkloadSpec("kunlun", size="tiny", device="cpu")), run=Replay(seed, shift))
    tried = [step for step in found.steps if step.change.startswith("compile Block")]
    return len(tried), sum(step.kept for step in tried)


@needs_recording
def test_searches_among_changes_that_change_nothing_keep_none() -> None:
    found = [replayed(seed) for seed in range(SEARCHES)]
    assert all(tried == 10 for tried, _ in found)
    wrong = sum(kept > 0 for _, kept in found)
    assert wrong <= MAX_WRONG * SEARCHES, f"{wrong} of {SEARCHES} searches kept a change that changes nothing"


@needs_recording
def test_the_same_noise_does_not_hide_a_gain() -> None:
    """A test that kept nothing at all would pass the one above."""
    found = [replayed(seed, shift=math.log(1.3)) for seed in range(20)]
    assert sum(kept > 0 for _, kept in found) >= 15
