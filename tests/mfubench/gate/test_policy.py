"""Limits and waivers come from a file, and what is wrong in it is said before anything runs."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest

from mfubench.errors import BadInput
from mfubench.gate.policy import ABSOLUTE, LIMITS, Policy, Waiver, read_policy
from mfubench.gate.rows import Outcome, Row

FAILED = Row("FAIL", "net:build", "model", "peak_memory", 1, 2, "more")
TODAY = date(2026, 11, 27)


def written(folder: Path, text: str, name: str = "mfubench.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_without_a_file_the_limits_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_policy(None) == Policy(LIMITS)
    written(tmp_path, "[tool.other]\nx = 1", "pyproject.toml")
    assert read_policy(None) == Policy(LIMITS)


def test_mfubench_toml_goes_before_pyproject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "[tool.mfubench.gate]\nlimits = {step_time = 0.1}", "pyproject.toml")
    assert read_policy(None).limits["step_time"] == 0.1 and read_policy(None).file == "pyproject.toml"
    written(tmp_path, "[gate]\nlimits = {step_time = 0.2}")
    assert read_policy(None).limits["step_time"] == 0.2 and read_policy(None).limits["bytes"] == LIMITS["bytes"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gate", "is not TOML"),
        ("gate = 3", "is int, not a table"),
        ("[gate]\nlimit = {}", "did you mean limits"),
        ("[gate]\nlimits = {step_tine = 0.1}", "did you mean step_time"),
        ("[gate]\nlimits = {step_time = -1}", "0.03 for 3 %"),
        ("[gate]\nlimits = {step_time = nan}", "0.03 for 3 %"),
        ("[gate]\nlimits = {step_time = inf}", "0.03 for 3 %"),
        ("[gatee]\nlimits = {step_time = 0.1}", r"says nothing of the gate; .* stand under \[gate\] there"),
        ("", "says nothing of the gate"),
        ("[gate]\nlimits = {step_time = '3 %'}", "0.03 for 3 %"),
        ("[gate]\nlimits = {registers = true}", "a count of 0 or more"),
        ("[gate]\nwaivers = {row = 'x'}", "is no list"),
        ("[gate]\nwaivers = [{row = 'x', until = 2026-12-31}]", "reason"),
        ("[gate]\nwaivers = [{row = 'x', until = '2026-12-31', reason = 'y'}]", "until"),
        ("[gate]\nwaivers = [{row = '', until = 2026-12-31, reason = 'y'}]", "row"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_policy(written(tmp_path, text))


def test_what_is_written_for_another_file_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "[tool.mfubench.gate]\nlimits = {step_time = 0.1}")
    with pytest.raises(BadInput, match=r"stand under \[gate\] there"):
        read_policy(None)
    written(tmp_path, "")
    assert read_policy(None) == Policy(LIMITS)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_policy(tmp_path / "none.toml")


def test_a_waiver_ends(tmp_path: Path) -> None:
    waiver = Waiver("net:* peak_memory", TODAY, "issue 12")
    rows, warnings = Policy(LIMITS, (waiver,)).waive([FAILED], TODAY)
    assert rows[0].waived == "until 2026-11-27: issue 12" and rows[0].counts == "CHANGED" and not warnings
    assert Outcome.of(rows).exit_code() == 0
    rows, warnings = Policy(LIMITS, (waiver,)).waive([FAILED], date(2026, 11, 28))
    assert rows == [FAILED] and "ended on 2026-11-27" in warnings[0]


def test_a_waiver_of_nothing_is_named() -> None:
    passed = Row("PASS", "net:build", "model", "peak_memory", 1, 1, "")
    rows, warnings = Policy(LIMITS, (Waiver("*", TODAY, "all"),)).waive([passed], TODAY)
    assert rows == [passed] and "covers nothing" in warnings[0]


def test_the_limits_are_those_that_the_documentation_promises() -> None:
    text = (Path(__file__).parents[3] / "docs" / "gate.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(\[tool\.mfubench\.gate\.limits\].*?)```", text, re.DOTALL)
    assert tomllib.loads(block)["tool"]["mfubench"]["gate"]["limits"] == LIMITS
    (counts,) = re.findall(r"shares, but (\w+) and (\w+) are counts", block)
    assert sorted(counts) == sorted(ABSOLUTE)
