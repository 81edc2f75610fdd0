"""Files that are written whole or not at all, and documents in JSON that are read whole or refused."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from .errors import BadInput


def read_json(file: Path, instead: str) -> Any:
    """The document that ``file`` holds; ``instead`` says in an error what to do.

    Raises:
        BadInput: it cannot be read, or is not JSON, which has neither NaN nor infinity.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse, parse_float=_finite)
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}; {instead}") from None
    except ValueError:
        raise BadInput(f"{file} is not JSON; {instead}") from None


def kept_json(file: Path) -> dict[str, Any] | None:
    """What was kept in ``file`` to save doing it again; None where there is nothing, or it is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` whole or not at all: a reader never sees half a file, also after an interrupt."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """The same for bytes."""
    with _replacing(path) as stream:
        stream.write(data)


def write_json(path: Path, told: Any) -> None:
    """The same for a document in JSON, indented for people and ``git diff``."""
    write_text(path, json.dumps(told, indent=1) + "\n")


def place_file(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target`` whole or not at all."""
    with source.open("rb") as read, _replacing(target) as stream:
        shutil.copyfileobj(read, stream)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once it is written; until then it lies beside it, under another name."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # it is gone where an interrupt came right after
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
