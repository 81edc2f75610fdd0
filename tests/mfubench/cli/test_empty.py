"""An empty argument, as of a variable that is not set, is refused: as a path it would be the working directory."""

from pathlib import Path

import pytest

from mfubench.cli import main

OF_GATE = ("gate", "check", "any:build", "--base", "main")
EMPTY: tuple[tuple[tuple[str, ...], str], ...] = (
    (("campaign", "--out", ""), "--out"),
    (("campaign", "--out="), "--out"),
    (("campaign", "--from", "", "--out", "out"), "--from"),
    (("profile", "kunlun", "--out", ""), "--out"),
    (("profile", "kunlun", "--data", ""), "--data"),
    (("profile", "kunlun", "--lock", ""), "--lock"),
    (("profile", "kunlun", "--recipe="), "--recipe"),
    ((*OF_GATE, "--path", ""), "--path"),
    ((*OF_GATE, "--junit", ""), "--junit"),
    (("report", ""), "an argument"),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("given", "option"), EMPTY)
def test_what_is_empty_is_named(
    given: tuple[str, ...], option: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(given))
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "") and not list(here.iterdir())
    assert err == f"mfubench: error: {option} is empty; give a value, or leave it out\n"


def test_a_field_may_be_set_to_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["profile", "nope", "--set=field="])
    assert "is empty" not in capsys.readouterr().err


@pytest.mark.parametrize(("path", "says"), [("..", "is outside of"), ("nowhere", "no such folder in")])
def test_a_path_of_the_gate_lies_in_the_working_directory(
    path: str, says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*OF_GATE, "--path", path])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and f"--path {path}" in err and says in err and str(here) in err
