"""Behaviour is chosen by arguments: a variable of the environment is read in one place, to record, find or fit."""

import ast
from pathlib import Path

from tests.house.tree import CODE, broken

ALLOWED = {
    "mfubench/kernels/interpreter.py": "Triton reads it while it is imported, and has no other switch",
    "mfubench/group.py": "a process that is started has that of who starts it",
    "mfubench/measure/environment.py": "records, and finds the user's cache folder",
    "mfubench/report/terminal.py": "$COLUMNS is how whoever reads a pipe says its width, as to other programs",
    "mfubench/measure/trace.py": "silences the profiler library's own log, which has no other switch",
}


def reads(path: Path) -> list[int]:
    """The lines of a file that read or set variables of the environment."""
    nodes = ast.walk(ast.parse(path.read_text()))
    names = ("environ", "getenv", "environb", "putenv")
    return [node.lineno for node in nodes if isinstance(node, ast.Attribute) and node.attr in names]


def test_environment_is_read_in_one_place() -> None:
    assert broken(CODE, reads).keys() == ALLOWED.keys()
