"""How a search goes on from its log, what log it refuses, and what it leaves of an earlier search."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mfubench.errors import BadInput
from mfubench.isolated import GaveUp
from mfubench.optimize.document import Step
from mfubench.optimize.log import FILE, read_log
from mfubench.optimize.tasks import identify, profile_changed
from tests.mfubench.optimize.answers import (
    IDENTITY,
    Answers,
    refused,
    search,
)


def interrupted(out: Path, at: str) -> None:
    """A search that Ctrl-C ends while ``at`` is tried."""

    def stop(title: str) -> None:
        if title == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(Answers(before=stop), out)


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    whole = search(Answers())
    interrupted(tmp_path, "compile Mixer")
    assert not (tmp_path / "recipe.toml").exists()
    answers = Answers()
    found = search(answers, tmp_path)
    assert ("try_change", "compile Tower") not in answers.asked
    assert found.resumed and not whole.resumed
    assert [(s.change, s.kept) for s in found.steps] == [(s.change, s.kept) for s in whole.steps]
    assert [s.predicted_ms for s in found.steps] == pytest.approx([s.predicted_ms for s in whole.steps])
    assert any("resumed" in note for note in found.notes)


def test_a_line_that_was_cut_short_is_tried_again(tmp_path: Path) -> None:
    interrupted(tmp_path, "compile model")
    log = tmp_path / FILE
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 4  # whose, survey, two trials
    log.write_text("".join(lines[:3]) + lines[3][:40])
    answers = Answers()
    found = search(answers, tmp_path)
    assert ("try_change", "compile Tower") not in answers.asked and ("try_change", "compile Mixer") in answers.asked
    assert len({step.change for step in found.steps}) == len(found.steps)


def test_a_search_that_ended_begins_anew(tmp_path: Path) -> None:
    search(Answers(), tmp_path)
    answers = Answers()
    assert not search(answers, tmp_path).resumed and ("try_change", "compile Tower") in answers.asked


def test_another_searchs_log_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, "compile Mixer")
    with pytest.raises(BadInput, match=r"another search \(judge time there, numbers here\)"):
        search(Answers(), tmp_path, judge="numbers")

    class Other(Answers):
        def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
            return (
                {**IDENTITY, "device_name": "a GPU"} if task is identify else super().__call__(task, argument, **limits)
            )

    with pytest.raises(BadInput, match="device_name a CPU there, a GPU here"):
        search(Other(), tmp_path)


@pytest.mark.parametrize(
    "text", [b"nonsense\nmore\n", b'{"kind": "step"}\n', b'{"kind": "search", "schema_version": 99}\n', b"\xff\xfe\n"]
)
def test_what_is_no_log_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(text)
    with pytest.raises(BadInput, match=FILE):
        read_log(tmp_path / FILE)


def test_a_log_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(BadInput, match=f"cannot read .*{FILE}"):
        read_log(tmp_path / FILE)


@pytest.mark.parametrize(
    ("place", "fact"),
    [
        (0, {"kind": "search", "schema_version": 1}),
        (1, {"kind": "survey", "survey": {"ops": 3}}),
        (2, {"kind": "step"}),
        (2, {"kind": "step", "step": {"change": "compile Tower"}}),
        (2, {"kind": "step", "step": dict.fromkeys(field.name for field in fields(Step))}),
        (2, {"kind": "step", "step": {field.name: {"change": "magic"} for field in fields(Step)}}),
    ],
)
def test_a_log_with_other_facts_is_refused_and_left_as_it_is(place: int, fact: dict[str, Any], tmp_path: Path) -> None:
    interrupted(tmp_path, "compile Mixer")
    lines = (tmp_path / FILE).read_text().splitlines()
    lines[place] = json.dumps(fact)
    (tmp_path / FILE).write_text("\n".join(lines) + "\n")
    with pytest.raises(BadInput, match=f"{FILE} is no log of this release; choose another --out"):
        search(Answers(), tmp_path)
    assert (tmp_path / FILE).read_text().splitlines() == lines


class NoTime(Answers):
    """For the end's profile."""

    def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
        if task is profile_changed:
            raise GaveUp("given up after 9 s")
        return super().__call__(task, argument, **limits)


def test_results_of_a_search_that_ended_stay_until_a_new_one_has_its_own(tmp_path: Path) -> None:
    """And no end of the one is left beside the other."""
    search(Answers(), tmp_path)
    recipe, end = tmp_path / "recipe.toml", tmp_path / "end" / "run.json"
    before = recipe.read_bytes()
    interrupted(tmp_path, "compile Mixer")
    assert recipe.read_bytes() == before and end.exists()
    found = search(NoTime(trials={"compile Mixer": refused("no")}), tmp_path)
    assert "the end was not profiled: given up after 9 s" in found.notes
    assert recipe.exists() and not end.exists()
