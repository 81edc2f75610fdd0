"""`mfubench gate` as a user's CI runs it: a repository, a change, a verdict, an exit code, and the files."""

import json
import re
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from xml.etree import ElementTree

import pytest

from mfubench.cli import main
from mfubench.errors import BadInput
from tests.compiling import mfubench
from tests.mfubench.gate.repository import AS_USED, a_repository, edit, git

SMALL = ("--batch-size", "4", "--quiet")
FOR_SM90 = ("--target", "sm_90", *SMALL)
ON_CPU = ("--device", "cpu", *SMALL)

KERNEL = """
import triton


@triton.jit
def never_kernel(x):
    pass
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = a_repository(tmp_path / "repository")
    monkeypatch.chdir(folder)
    return folder


def gate(*arguments: str, code: int = 0) -> CompletedProcess[str]:
    """The command where Triton compiles, which is to end with ``code``."""
    ended = mfubench("gate", *arguments)
    assert ended.returncode == code and "Traceback" not in ended.stderr, ended.stderr
    return ended


def told(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Its document."""
    document: dict[str, Any] = json.loads(gate(*arguments, "--json", code=code).stdout)
    assert document["exit_code"] == code
    return document


def test_a_change_that_needs_more_fails_and_leaves_all_its_files(repository: Path, tmp_path: Path) -> None:
    edit(repository / "net.py", AS_USED, "self.first(x).sigmoid().relu()")
    out, summary = tmp_path / "out", tmp_path / "summary.md"
    summary.write_text("# before\n", encoding="utf-8")
    waiver = '{row = "* kept_activations", until = 2999-12-31, reason = "till it is fused"}'
    (repository / "mfubench.toml").write_text(f"[gate]\nwaivers = [{waiver}]\n", encoding="utf-8")
    files = ("--out", str(out), "--summary", str(summary), "--junit", str(tmp_path / "junit.xml"), "--annotations")
    ended = gate("check", "net:build", "--base", "main", *FOR_SM90, *files, code=1)
    assert "FAIL" in ended.stdout and "::error" in ended.stderr
    document = json.loads((out / "gate.json").read_text(encoding="utf-8"))
    failed = {row["metric"]: row["waived"] for row in document["rows"] if row["verdict"] == "FAIL"}
    (where,) = (row["where"] for row in document["rows"] if row["metric"] == "bytes")
    assert {(each["module"], each["part"]): each["operators"] for each in where}["(model)", "forward"] == "elementwise"
    culprit, at = "(model): +512 B elementwise, forward", "file=net.py,line=11"
    assert culprit in ended.stdout and culprit in ended.stderr and at in ended.stderr
    assert failed["bytes"] is None and failed.pop("kept_activations") == "until 2999-12-31: till it is fused"
    assert document["base"]["commit"] == git(repository, "rev-parse", "main")
    assert (out / "report.html").is_file() and "FAIL" in (out / "report.md").read_text(encoding="utf-8")
    appended = summary.read_text(encoding="utf-8")
    assert appended.startswith("# before\n") and "FAIL" in appended and "512 B elementwise" in appended
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert int(suite.get("failures", "0")) == len(failed)
    assert culprit in next(case[0].get("message", "") for case in suite.iter("testcase") if case.get("name") == "bytes")


def test_a_change_of_words_passes(repository: Path) -> None:
    edit(repository / "net.py", "import torch\n", "import torch  # as before\n")
    document = told("check", "net:build", "--base", "main", *FOR_SM90)
    assert document["verdict"] == "PASS" and set(document["counted"]) == {"PASS"}
    assert any("differs in net.py" in note for note in document["notes"])
    workload = document["workloads"]["net:build"]
    assert (workload["batch_size"], workload["dtype"], workload["kernels"]) == (4, "fp32", {"sm_90": 0})
    assert document["head"]["dirty"] and not document["warnings"]


def test_both_sides_are_measured_by_the_mfubench_that_runs_the_gate(repository: Path) -> None:
    """Whatever base has under that name: so both sides' stocks have the same form.

    And kernels that are not launched are warned of, as in a step that asks whether its tensors are on a GPU.
    """
    (repository / "mfubench").mkdir()
    (repository / "mfubench" / "__init__.py").write_text("raise ImportError('of base')\n", encoding="utf-8")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "another mfubench")
    git(repository, "rm", "--quiet", "-r", "mfubench")
    (repository / "mine.py").write_text(KERNEL, encoding="utf-8")
    edit(repository / "net.py", "import torch\n", "import torch\nimport mine\n")
    document = told("check", "net:build", "--base", "HEAD", *FOR_SM90)
    (warning,) = document["warnings"]
    assert document["verdict"] == "PASS"
    assert warning.startswith("net:build: its code has Triton kernels, but its step launches none for sm_90")


def test_a_model_that_base_has_not_or_that_does_not_run_there_is_named(repository: Path) -> None:
    """One of several models costs itself; what broke goes before what is new."""
    (repository / "other.py").write_text((repository / "net.py").read_text(encoding="utf-8"), encoding="utf-8")
    edit(repository / "net.py", AS_USED, "x.nonsense()")
    git(repository, "commit", "--quiet", "--message", "broken", "net.py")
    edit(repository / "net.py", "x.nonsense()", AS_USED)
    models = ("net:build", "other:build")
    document = told("check", *models, "--base", "HEAD", *FOR_SM90, "--require-baseline", code=5)
    broken, new = document["rows"]
    assert broken["verdict"] == "ERROR" and broken["why"].startswith("base: ") and "nonsense" in broken["why"]
    assert (new["verdict"], new["benchmark"]) == ("NO_BASELINE", "other:build")


def test_code_that_lies_elsewhere_is_refused(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides would be the same installed package, and nothing would ever fail."""
    elsewhere = a_repository(tmp_path / "elsewhere", name="installed")
    monkeypatch.syspath_prepend(str(elsewhere))
    for model in (("installed:build",), ("kunlun", "--size", "tiny")):
        ended = gate("check", *model, "--base", "main", *FOR_SM90, code=2)
        assert "both sides would run the same code" in ended.stderr and "--path" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("net:build", "--base", "nowhere"), "neither a revision nor a folder"),
        (("net:build", "net:build", "--base", "main"), "given twice"),
        (("net:build", "--base", "main", "--target", "sm_70"), "allowed: sm_80, sm_90, sm_100"),
        (("net:build", "--base", "main", "--config", "none.toml"), "cannot be read"),
        (("net:build", "--base", "main", "--path", "src"), "no such folder"),
        (("net:build", "--base", "main", "--out", "net.py"), "--out net.py"),
        (("net:build", "--base", "main", "--junit", "net.py/junit.xml"), "--junit"),
        (("net:build", "--base", "main", "--summary", "."), "is a folder; give a file"),
    ],
)
def test_bad_input_is_said_before_anything_runs(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["gate", "check", *arguments])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and says in shown.err and shown.out == ""


def test_a_model_that_neither_side_has_is_bad_input(repository: Path) -> None:
    ended = gate("check", "nothing:build", "--base", "main", *FOR_SM90, code=2)
    assert "cannot import nothing" in ended.stderr and ended.stdout == ""


@pytest.fixture
def short(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs of processes that are done with each other soon."""
    monkeypatch.setattr("mfubench.gate.timing.BLOCKS", 2)
    return repository


def timed(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    """The row of the step's time."""
    with pytest.raises(SystemExit) as ended:
        main(["gate", "run", "net:build", "--base", "main", "--budget", "1s", *ON_CPU, "--json"])
    assert ended.value.code == code
    (row,) = [row for row in json.loads(capsys.readouterr().out)["rows"] if row["tier"] == "time"]
    return dict(row)


def test_a_timed_gate_holds_pairs_of_processes_against_each_other(
    short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(short / "net.py", "import torch\n", "import torch  # as before\n")
    row = timed(capsys)
    assert row["verdict"] == "INCONCLUSIVE" and "one pair" in row["why"] and row["unit"] == "ms"


@pytest.mark.parametrize("command", [("check",), ("run", "--device", "cpu")], ids=lambda command: command[0])
@pytest.mark.parametrize("given", [{}, {"--verbose": "verbose"}, {"--quiet": "quiet"}], ids=str)
def test_progress_is_as_it_is_asked_for(
    command: tuple[str, ...], given: dict[str, str], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, bool]] = []

    def stages(**how: bool) -> Any:
        asked.append(how)
        raise BadInput("enough")

    monkeypatch.setattr("mfubench.cli.gate.stages", stages)
    with pytest.raises(SystemExit):
        main(["gate", *command, "net:build", "--base", "main", *given])
    assert asked == [{name: name in given.values() for name in ("quiet", "verbose")}]


def test_a_side_that_dies_while_it_is_timed_is_an_error(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counted = "self.calls = getattr(self, 'calls', 0) + 1"
    dies = f"{counted}\n        if self.calls > 8: __import__('os')._exit(3)\n        return"
    edit(short / "net.py", "return self.last", f"{dies} self.last")
    row = timed(capsys, code=5)
    assert row["verdict"] == "ERROR" and "head: its process ended with code 3" in row["why"]


def test_too_short_a_self_check_says_what_it_needs(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["gate", "self-check", "net:build", "--budget", "1s", *ON_CPU])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "--budget of 1 s is too short: a round takes about" in error
    assert re.search(r"and 4 are needed; give about \d+0 s or more", error)


def test_a_self_check_of_no_model_is_bad_input(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["gate", "self-check", "nothing:build", "--budget", "1s", *ON_CPU])
    assert ended.value.code == 2 and "error: cannot import nothing" in capsys.readouterr().err
