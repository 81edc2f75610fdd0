"""What the documents name exists, and what they print is what runs."""

import json
import re
from pathlib import Path

import pytest

from mfubench.report.format import GROUP
from mfubench.report.verdict import headline
from mfubench.run import read_run
from tests.house.tree import DOCS, ROOT, named

FOLDERS = "mfubench|kernels|model_zoo|examples|reports|tests"
PATH_IN_DOC = re.compile(rf"`((?:{FOLDERS})/[\w./-]*|[\w.-]+\.(?:md|toml|txt)|\.ci/\w+|LICENSE)`")
MADE_BY_A_USER = {"mfubench.toml"}
MADE_BY_A_RUN = {"run.json", "report.md", "report.html", "trace.json.gz", "recipe.toml"}
IN_AN_OP_OR_MODEL = {
    "config.py",
    "model.py",
    "flops.py",
    "op.py",
    "reference.py",
    "cost.py",
    "boundary.py",
    "kernel.py",
    "kernel_bwd.py",
    "kernel_sm90.py",
    "examples.py",
    "__init__.py",
}


@pytest.mark.parametrize("path", DOCS, ids=named)
def test_named_files_exist(path: Path) -> None:
    mentioned = set(PATH_IN_DOC.findall(path.read_text())) - MADE_BY_A_RUN - MADE_BY_A_USER - IN_AN_OP_OR_MODEL
    places = (ROOT, path.parent, ROOT / "reports" / "nvidia-h200")  # of the last, docs/measured-facts.md tells
    assert not [name for name in mentioned if not any((place / name).exists() for place in places)]


def test_ci_runs_the_readme_test_command() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    commands = re.findall(r"^python3 -m venv .*$", readme, flags=re.MULTILINE)
    assert len(commands) == 2, "the README has two commands: the main job, and the tests"
    assert commands[1] in ci.splitlines()


def test_readme_examples_name_commands_and_options_that_exist() -> None:
    from tests.house.test_cli_surface import FROZEN

    examples = re.findall(r"\bmfubench ((?:[a-z]+)(?: [^\n`#&]+)?)", (ROOT / "README.md").read_text())
    for example in examples:
        words = example.split()
        command = next((name for name in FROZEN if words[: len(name.split())] == name.split()), None)
        if command is not None:
            assert {word for word in words if word.startswith("--")} <= FROZEN[command], example
    shown = {tuple(example.split()[:2]) for example in examples}
    assert {name for name in FROZEN if not any(f"{' '.join(pair)} ".startswith(f"{name} ") for pair in shown)} == set()


def test_every_report_is_listed() -> None:
    listed = (ROOT / "reports" / "README.md").read_text()
    kept = {entry for device in (ROOT / "reports").iterdir() if device.is_dir() for entry in device.iterdir()}
    assert kept
    assert [str(entry) for entry in kept if f"`{entry.parent.name}/{entry.name}" not in listed] == []


def test_every_cause_of_a_ledger_is_explained() -> None:
    from mfubench.run import CAUSE_FAMILIES

    guide = (ROOT / "docs" / "reading-a-report.md").read_text()
    assert [family for family in CAUSE_FAMILIES if f"| `{family}" not in guide] == []


def test_the_headline_that_is_explained_is_one_that_is_printed(tmp_path: Path) -> None:
    """docs/reading-a-report.md quotes that of a measured run."""
    measured = ROOT / "reports/nvidia-h200/campaign/profile/kunlun-large_plus-train-kernels_batch_2048.json"
    (tmp_path / "run.json").write_text(json.dumps(json.loads(measured.read_text())["document"]))
    lines = (ROOT / "docs" / "reading-a-report.md").read_text().splitlines()
    quoted = " ".join(line.removeprefix("> ") for line in lines if line.startswith("> "))
    assert quoted == headline(read_run(tmp_path)).replace(GROUP, " ")
