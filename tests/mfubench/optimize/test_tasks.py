"""Whose a search is, and its comparison at the end: start, what was kept and plain torch.compile, timed in turn."""

from dataclasses import replace

import pytest
import torch

from mfubench.optimize.changes import Change, Compile, UseBatchSize, UseDtype, UseImpl
from mfubench.optimize.tasks import Ends, Finale, finale, identify
from mfubench.optimize.trial import COMPILING, FIRST_STEPS, PREPARING, arms_of, first_steps_of
from mfubench.workload.spec import WorkloadSpec

SPEC = WorkloadSpec("tests.mfubench.optimize.small_model:build", device="cpu", batch_size=4)
LARGER, SHORTER = UseBatchSize(16), UseDtype("bf16")  # any change can stand for torch.compile, which takes long


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfubench.optimize.tasks.LOOKS", (4,))


def ends(kept: tuple[Change, ...], plain: Change | None) -> Ends:
    return finale(Finale(SPEC, kept, plain), lambda phase: None)


def test_each_is_timed_in_its_own_samples() -> None:
    found = ends((LARGER,), SHORTER)
    assert found.gains.keys() == {"end", "plain", "end over plain"} and found.steps.keys() == {"start", "end", "plain"}
    for name, requests in (("start", 4), ("end", 16), ("plain", 4)):
        step = found.steps[name]
        time = step["time_ms"]
        assert 0 < time["ci95_low"] <= time["median"] <= time["ci95_high"]
        assert step["samples_per_s"] == pytest.approx(1e3 * requests / time["median"])
    rate = {name: step["samples_per_s"] for name, step in found.steps.items()}
    assert found.gains["end"]["median"] == pytest.approx(rate["end"] / rate["start"], rel=0.5)


def test_nothing_kept_leaves_two_to_compare() -> None:
    assert ends((), LARGER).gains.keys() == {"plain"}
    assert ends((LARGER,), None).gains.keys() == {"end"}


def test_other_code_of_ours_makes_another_search(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identify(SPEC, lambda phase: None)
    monkeypatch.setattr("mfubench.optimize.tasks.code_hash", lambda: "new")
    after = identify(SPEC, lambda phase: None)
    assert {name for name in before if before[name] != after[name]} == {"code"}


def test_another_training_makes_another_search(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identify(SPEC, lambda phase: None)
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *args, **options: adam(*args, **options | {"lr": 0.5}))
    after = identify(SPEC, lambda phase: None)
    assert {name for name in before if before[name] != after[name]} == {"training"}


def test_first_steps_are_a_compilation_only_where_something_may_be_compiled() -> None:
    told: list[str] = []
    arms_of(replace(SPEC, steps=4), [(), (SHORTER,)], told.append)
    assert told == [PREPARING, FIRST_STEPS, FIRST_STEPS]
    for change in (Compile("tests.Layer"), UseImpl("gdpa", "triton")):
        assert first_steps_of(SPEC, [change]) == COMPILING
    assert first_steps_of(replace(SPEC, compile="model"), []) == COMPILING
