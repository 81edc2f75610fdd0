"""What a pair of processes does in its turns, and how many pairs a gate takes."""

import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mfubench.gate import side, timing
from mfubench.gate.source import Source
from mfubench.gate.timing import BLOCKS, BOTH_AT_ONCE, Pair, SideBroke, SideRefused, pairs, until_decided
from mfubench.worker import DONE, Answer, Watch
from tests.house.tree import ROOT

SOURCE = Source("head", "working directory", Path("/src"), ())


class Machine:
    """Both processes are this one; a step takes a millisecond, ``wanted`` of them are to make a turn."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.steps: list[int] = []  # of each turn

    def run(self, work: Any, arguments: Mapping[str, Any], limit_s: float) -> Answer:
        if work is side.get_ready:
            return Answer(DONE, document={"steps": self.wanted})
        return Answer(DONE, document=work(Watch.__new__(Watch), **arguments, without={}))

    def time_steps(self, step: Any, *, num_steps: int, **_: Any) -> list[float]:
        self.steps.append(num_steps)
        return [1.0] * num_steps

    def close(self) -> None:
        pass


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Machine:
    made = Machine(request.param)
    monkeypatch.setattr(side, "_READY", [(SimpleNamespace(device=None), None)])
    monkeypatch.setattr("mfubench.measure.timing.time_steps", made.time_steps)
    monkeypatch.setattr(timing, "_worker", lambda *_: made)
    return made


@pytest.mark.parametrize("machine", [1, 4, 10, 15, 26, 1234], indirect=True)
def test_a_tenth_more_is_a_tenth_however_many_steps_make_a_turn(machine: Machine) -> None:
    pair = next(pairs(SOURCE, SOURCE, {}, "cpu", one_more_in=10))
    assert pair.log == pytest.approx(math.log(1.1)) and pair.itself == 0
    assert set(pair.base_ms) == {1.0} and set(pair.head_ms) == {1.1}
    assert machine.wanted <= min(machine.steps) < machine.wanted + 10 and len(machine.steps) == 4 * BLOCKS


@pytest.mark.parametrize("machine", [15], indirect=True)
def test_both_sides_of_a_gate_do_the_same(machine: Machine) -> None:
    assert next(pairs(SOURCE, SOURCE, {}, "cpu")).log == 0 and set(machine.steps) == {15}


def offered(logs: Sequence[float], closed: list[bool]) -> Generator[Pair]:
    try:
        for log in logs:
            yield Pair(log, 0.0, [1.0], [math.exp(log)])
        raise SideBroke("head: its process ended with SIGSEGV")
    finally:
        closed.append(True)


def taken(logs: Sequence[float], budget_s: float = 60.0) -> list[float]:
    closed, told = list[bool](), list[int]()
    try:
        had = until_decided(offered(logs, closed), 0.03, 0.05, budget_s, told.append)
    finally:
        assert closed
    assert told == list(range(len(had)))
    return [pair.log for pair in had]


def test_a_gate_takes_the_pairs_that_decide() -> None:
    clear, unclear = [0.1, 0.101, 0.099, 0.1], [0.1, 0.5, -0.1, 0.1]
    assert taken([*clear, 5.0]) == clear
    assert taken([*unclear * 4, 5.0]) == unclear * 4


def test_a_gate_keeps_to_its_budget_but_for_one_pair() -> None:
    assert taken([0.1, 0.5, 0.1], budget_s=-1.0) == [0.1]


def test_a_side_that_breaks_is_named() -> None:
    with pytest.raises(SideBroke, match="head: its process ended with SIGSEGV"):
        taken([0.1])


@pytest.mark.parametrize("exhausted", [True, False])
def test_a_side_that_has_too_little_memory_is_told_that_there_are_two(
    exhausted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Answer(DONE, document={"refused": "no room", "exhausted": exhausted})
    worker = SimpleNamespace(run=lambda *_, **__: refused, close=lambda: None, killed=False, kill=lambda: None)
    monkeypatch.setattr(timing, "_worker", lambda *_: worker)
    with pytest.raises(SideRefused, match="no room" + (BOTH_AT_ONCE if exhausted else "$")):
        next(pairs(SOURCE, SOURCE, {}, "cpu"))


@pytest.mark.parametrize(("requests", "exhausted"), [(900_000_000, True), (0, False)])
def test_too_little_memory_is_known_from_other_reasons(requests: int, exhausted: bool) -> None:
    asked = {"model": "dlrm", "size": "tiny", "device": "cpu", "overrides": {} if requests else {"none": "1"}}
    told, none = side._prepared_after_a_step(asked | {"batch_size": requests or 4}, [str(ROOT)])
    assert none is None and told["exhausted"] == exhausted and told["refused"]
