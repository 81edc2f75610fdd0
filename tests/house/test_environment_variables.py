"""Behaviour is chosen by arguments: a variable of the environment is read in one place, to record, find or fit."""

import ast
from pathlib import Path

import pytest

from tests.house.tree import CODE, named

ALLOWED = {
    "mfubench/kernels/interpreter.py": "Triton reads it while it is imported, and has no other switch",
    "mfubench/measure/environment.py": "records, and finds the user's cache folder",
    "mfubench/report/terminal.py": "$COLUMNS is how whoever reads a pipe says its width, as to other programs",
    "mfubench/measure/trace.py": "silences the profiler library's own log, which has no other switch",
}


@pytest.mark.parametrize("path", CODE, ids=named)
def test_environment_is_read_in_one_place(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text()))
    uses = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr in ("environ", "getenv", "environb", "putenv")]
    assert bool(uses) == (named(path) in ALLOWED)
