"""Files are read and written as UTF-8, whatever the locale of the machine."""

import ast
from pathlib import Path

from tests.house.tree import CODE, broken

TEXT = ("read_text", "write_text", "fdopen")


def unnamed(path: Path) -> list[int]:
    """The lines of a file that leave the encoding to the locale."""
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    text = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in TEXT]
    return [call.lineno for call in text if "encoding" not in [keyword.arg for keyword in call.keywords]]


def test_text_names_its_encoding() -> None:
    assert not broken(CODE, unnamed)
