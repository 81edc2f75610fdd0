"""A self-check's budget: too short a one is refused as soon as that is known, with about how long is needed."""

from collections.abc import Iterator
from typing import Any

import pytest

from mfubench.errors import BadInput
from mfubench.gate import selfcheck
from mfubench.gate.timing import Pair
from mfubench.progress import silent


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pairs of 10 s each by a clock of their own; when each of them began."""
    began: list[float] = []

    def offered(*_: Any, one_more_in: int | None = None) -> Iterator[Pair]:
        for place in range(100):
            began.append(10.0 * len(began))
            yield Pair((0.1 if one_more_in else 0.0) + 0.001 * (place % 2), 0.0, [1.0], [1.0])

    monkeypatch.setattr(selfcheck, "pairs", offered)
    monkeypatch.setattr(selfcheck, "monotonic", lambda: 10.0 * len(began))
    monkeypatch.setattr(selfcheck, "TRIALS", 10)
    return began


def checked(budget_s: float) -> dict[str, Any]:
    side: Any = None
    return selfcheck.self_check(side, {}, "cpu", margin=0.03, budget_s=budget_s, progress=silent)


def test_a_budget_that_is_far_too_short_is_refused_after_one_pair(pairs: list[float]) -> None:
    said = "--budget of 60 s is too short: a round takes about 20 s here, and 4 are needed; give about 90 s or more"
    with pytest.raises(BadInput, match=said):
        checked(60.0)
    assert len(pairs) == 1


def test_a_budget_that_might_do_is_spent(pairs: list[float]) -> None:
    """A first pair that takes long is no proof: it fills caches."""
    with pytest.raises(BadInput, match="give about 90 s or more"):
        checked(62.0)
    assert len(pairs) == 7


def test_the_last_pair_that_is_needed_may_end_after_the_budget(pairs: list[float]) -> None:
    assert checked(70.0)["pairs"] == 4


def test_what_is_advised_is_enough(pairs: list[float]) -> None:
    assert checked(90.0)["pairs"] == 4
