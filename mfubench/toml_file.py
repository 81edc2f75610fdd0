"""What users write in TOML: read, looked into, and told what is unknown in it."""

import tomllib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mfubench.errors import BadInput

FILES = {"mfubench.toml": (), "pyproject.toml": ("tool", "mfubench")}  # and where in it the commands' tables are


def read_toml(file: Path) -> dict[str, Any]:
    """The whole document.

    Raises:
        BadInput: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is not TOML: {error}") from error


def inside(document: Any, keys: Sequence[str]) -> Any:
    """What stands below ``keys``, one in the other; an empty table where one of them is missing."""
    for key in keys:
        document = document.get(key, {}) if isinstance(document, dict) else {}
    return document


def unknown(key: str, allowed: Iterable[str], where: str) -> BadInput:
    """The error about a key that is none of those ``allowed`` there."""
    names = list(allowed)
    near = get_close_matches(key, names, 1)
    hint = f" did you mean {near[0]}?" if near else ""
    return BadInput(f"{where}: {key} is unknown;{hint} allowed: {', '.join(names)}")
