"""Results alone go to stdout: nothing that a model or a library prints, by whatever way; and where nobody reads."""

import json
import subprocess
from pathlib import Path

import pytest

from .process import MODEL, cli

RUNS = Path(__file__).parents[3] / "reports/nvidia-h200/campaign/road/kunlun-large/runs"
COMPARE = ("compare", str(RUNS / "+rote"), str(RUNS / "+gdpa"), "--json")  # a long result, and soon there

PRINTS = """
def everywhere(what):
    print("Python", what)
    os.write(1, f"descriptor {what}\\n".encode())
    ctypes.CDLL(None).puts(f"C {what}".encode())  # which stays in a buffer until the end


def build():
    atexit.register(everywhere, "at the end")
    everywhere("while building")
    return made(lambda: everywhere("in a step"))
"""
COMMANDS = {
    "profile": ("profile", "prints:build", "--steps", "1", "--device", "cpu"),
    "plan": ("plan", "prints:build", "--gpu", "H200"),
    "gate": ("gate", "check", "prints:build", "--base", "base", "--target", "sm_90"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_model_prints_is_no_part_of_the_result(command: str, tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(MODEL + PRINTS)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "prints.py").write_text(MODEL + PRINTS)
    found = cli(tmp_path, *COMMANDS[command], "--json", "--quiet")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)
    for way in ("Python", "descriptor", "C"):
        assert f"{way} in a step" in found.stderr and f"{way} while building" in found.stderr
    assert command == "gate" or "Python at the end" in found.stderr


def test_a_page_is_alone_as_well(tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(MODEL + PRINTS)
    found = cli(tmp_path, *COMMANDS["plan"], "--quiet")
    assert found.returncode == 0 and "H200" in found.stdout
    assert not any(words in found.stdout for words in ("in a step", "while building", "at the end"))


def test_a_result_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        found = cli(tmp_path, *COMPARE, stdout=full)
    (line,) = found.stderr.splitlines()
    assert found.returncode == 5 and "No space left on device" in line


def test_who_reads_no_further_has_seen_enough(tmp_path: Path) -> None:
    code = "read line; sleep 2; true"
    with subprocess.Popen(["sh", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        found = cli(tmp_path, *COMPARE, stdout=reader.stdin)
    assert (found.returncode, found.stderr) == (0, "")


def test_without_stderr_an_error_has_no_place_in_the_result(tmp_path: Path) -> None:
    found = cli(tmp_path, "profile", "nope", stderr=None, preexec_fn=lambda: __import__("os").close(2))
    assert (found.returncode, found.stdout) == (2, "")
