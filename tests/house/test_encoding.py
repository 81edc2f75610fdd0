"""Files are read and written as UTF-8, whatever the locale of the machine."""

import ast
from pathlib import Path

import pytest

from tests.house.tree import CODE, named

TEXT = ("read_text", "write_text", "fdopen")


@pytest.mark.parametrize("path", CODE, ids=named)
def test_text_names_its_encoding(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    text = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in TEXT]
    unnamed = [call.lineno for call in text if "encoding" not in [keyword.arg for keyword in call.keywords]]
    assert not unnamed, f"lines {unnamed} leave the encoding to the locale"
