"""Plain torch.compile of the whole model: timed beside what was kept, and tried where it is faster."""

from typing import Any

import pytest

from mfubench.isolated import GaveUp
from mfubench.optimize.tasks import finale
from mfubench.optimize.trial import Trial, try_change
from mfubench.report.optimization import optimization_page
from tests.mfubench.optimize.answers import (
    Answers,
    everything_tried,
    refused,
    search,
    speedup,
    step_at,
)


def test_plain_torch_compile_that_does_not_compile_in_time_is_left_out() -> None:
    class Slow(Answers):
        def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
            if task is finale and argument.plain:
                raise GaveUp("compiling took longer than what it was given")
            return super().__call__(task, argument, **limits)

    answers = Slow()
    found = search(answers)
    assert found.plain_compile["reason"] == "compiling took longer than what it was given"
    assert found.speedup == speedup(1.5) and [f.plain for f in answers.finales] == [None]
    assert found.notes == []


def test_plain_torch_compile_that_was_kept_is_not_timed_beside_itself() -> None:
    no = {title: refused("no") for title in everything_tried() if title != "compile model"}
    answers = Answers(trials=no)
    found = search(answers)
    assert found.kept == ["compile model"] and [f.plain for f in answers.finales] == [None]
    assert found.speedup == found.plain_compile["speedup"] == speedup(1.5) and found.over_plain_compile is None


WHOLE = "compile model"


class Slow(Answers):
    """A trial takes 30 seconds of a clock of its own, the comparison at the end 10."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
        super().__init__(**given)
        self.now = 0.0
        monkeypatch.setattr("mfubench.optimize.search.monotonic", lambda: self.now)

    def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
        if task is try_change:
            self.now += min(30.0, limits["limit_s"])
            if limits["limit_s"] < 30.0:
                raise GaveUp(f"given up after {limits['limit_s']:.0f} s, while compiling")
        self.now += 10.0 * (task is finale)
        return super().__call__(task, argument, **limits)


def test_plain_torch_compile_that_is_faster_is_held_to_the_numbers_in_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow(monkeypatch, over_plain=0.9)
    found = search(slow, budget_s=105.0)
    assert slow.asked == [
        *(("try_change", "compile Tower"), ("confirm", "compile Tower")),
        *(("try_change", WHOLE), ("confirm", WHOLE)),
    ]
    assert found.kept == [WHOLE] and found.over_plain_compile is None
    assert found.speedup == found.plain_compile["speedup"] == speedup(1.1)
    assert found.in_turn["end"] == found.in_turn["plain"] == step_at(1.1)
    assert "that is what was kept" in str(optimization_page(found).sections[0])


@pytest.mark.parametrize(
    ("budget_s", "trials", "said"),
    [
        (75.0, {}, "a longer --budget gives time to check its numbers"),
        (105.0, {WHOLE: refused("wrong numbers: a gradient")}, "refused: wrong numbers: a gradient"),
        (900.0, {WHOLE: refused("wrong losses")}, "refused: wrong losses"),
    ],
)
def test_plain_torch_compile_that_is_faster_and_not_kept_is_named(
    budget_s: float, trials: dict[str, Trial | Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = search(Slow(monkeypatch, over_plain=0.9, trials=trials), budget_s=budget_s)
    assert WHOLE not in found.kept and found.speedup == speedup(1.5)
    note = found.notes[0]
    assert note.startswith("plain torch.compile of the whole model is faster than what was kept; ") and said in note


def test_plain_torch_compile_that_is_not_faster_is_not_named() -> None:
    found = search(Answers(trials={WHOLE: refused("slower")}))
    assert found.notes == []


@pytest.mark.parametrize(("over_plain", "named"), [(0.985, False), (0.975, True)])
def test_plain_torch_compile_is_faster_than_the_end_if_all_of_its_interval_is(over_plain: float, named: bool) -> None:
    """That reaches 0.01 further: 0.995 may be no loss, 0.985 is one."""
    found = search(Answers(over_plain=over_plain, trials={WHOLE: refused("wrong losses")}))
    assert found.kept and bool(found.notes) == named


@pytest.mark.parametrize(("plain", "named"), [(1.015, False), (1.025, True)])
def test_plain_torch_compile_is_faster_than_the_start_if_all_of_its_interval_is(plain: float, named: bool) -> None:
    found = search(Answers(plain=plain, trials={title: refused("no") for title in everything_tried()}))
    assert not found.kept and bool(found.notes) == named


def test_once_plain_torch_compile_was_tried_the_end_needs_no_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 200 seconds is kept for the end until then, and afterwards the 30 of that trial."""
    slow = Slow(monkeypatch)
    search(slow, budget_s=200.0)
    assert tried(slow) == ["compile Tower", "compile Mixer", WHOLE, "batch_size 64", "dtype bf16"]


def test_plain_torch_compile_that_was_refused_untimed_says_nothing_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the half goes on: 10 seconds, in which one more is begun and given up."""
    slow = Slow(monkeypatch, trials={WHOLE: Trial(refused="does not compile")})
    search(slow, budget_s=200.0)
    assert tried(slow) == ["compile Tower", "compile Mixer", WHOLE]


def tried(answers: Answers) -> list[str]:
    return [title for task, title in answers.asked if task == "try_change"]
