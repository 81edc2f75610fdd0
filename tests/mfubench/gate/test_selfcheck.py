"""A self-check's budget: too short a one is refused as soon as that is known, with about how long is needed."""

from collections.abc import Iterator
from typing import Any

import pytest

from mfubench.errors import BadInput
from mfubench.gate import selfcheck
from mfubench.gate.timing import Pair
from mfubench.progress import silent

COLD_S, PAIR_S = 90.0, 10.0  # a first pair, and any other


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pairs, the first of them cold, by a clock of their own; when each of them began."""
    began: list[float] = []

    def clock() -> float:
        return COLD_S + PAIR_S * (len(began) - 1) if began else 0.0

    def offered(*_: Any, one_more_in: int | None = None) -> Iterator[Pair]:
        for place in range(100):
            began.append(clock())
            yield Pair((0.1 if one_more_in else 0.0) + 0.001 * (place % 2), 0.0, [1.0], [1.0])

    monkeypatch.setattr(selfcheck, "pairs", offered)
    monkeypatch.setattr(selfcheck, "monotonic", clock)
    monkeypatch.setattr(selfcheck, "TRIALS", 10)
    return began


def checked(budget_s: float) -> dict[str, Any]:
    side: Any = None
    return selfcheck.self_check(side, {}, "cpu", margin=0.03, budget_s=budget_s, progress=silent)


def test_a_budget_that_is_too_short_is_refused_once_a_pair_was_warm(pairs: list[float]) -> None:
    said = "--budget of 140 s is too short: a round takes about 20 s here, and 4 are needed; give about 180 s or more"
    with pytest.raises(BadInput, match=said):
        checked(140.0)
    assert len(pairs) == 2


def test_one_that_the_first_pair_used_up_is_refused_at_once(pairs: list[float]) -> None:
    with pytest.raises(BadInput, match="--budget of 80 s is too short"):
        checked(80.0)
    assert len(pairs) == 1


def test_a_cold_first_pair_is_no_measure_of_the_others(pairs: list[float]) -> None:
    """Eight pairs like the first would take 720 s; these take 160, and the last may end after the budget."""
    assert checked(150.0)["pairs"] == 4


def test_what_is_advised_is_enough(pairs: list[float]) -> None:
    assert checked(180.0)["pairs"] == 4
