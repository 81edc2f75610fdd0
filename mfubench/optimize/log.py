"""The search's log: one line a fact, each written whole, from which an interrupted search goes on.

The first line says whose it is; then come the survey, one line for each trial that ended, and a last one when the
search has.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfubench.errors import BadInput
from mfubench.files import write_text
from mfubench.identity import ELSEWHERE

SCHEMA_VERSION = 1
FILE = "optimize.jsonl"


class Log:
    """Appends to ``file``; without one it keeps nothing."""

    def __init__(self, file: Path | None) -> None:
        self.file = file

    def begin(self, identity: Mapping[str, Any]) -> None:
        """A new log, in place of any that is there."""
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.unlink(missing_ok=True)
            self.append("search", {"schema_version": SCHEMA_VERSION, "identity": dict(identity)})

    def go_on(self, facts: Sequence[Mapping[str, Any]]) -> None:
        """Append to what `read_log` gave, without a line that was cut short."""
        if self.file is not None:
            write_text(self.file, "".join(json.dumps(fact) + "\n" for fact in facts))

    def append(self, kind: str, fact: Mapping[str, Any]) -> None:
        """One line, in one write that reaches the disk before this returns."""
        if self.file is None:
            return
        line = json.dumps({"kind": kind, **fact}) + "\n"
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)


def read_log(file: Path) -> list[dict[str, Any]] | None:
    """The facts of an interrupted search's log; None where there is nothing to go on from: no log, or one that ended.

    A last line that an interrupt cut short is left out.

    Raises:
        BadInput: it is no log of this release.
    """
    if not file.exists():
        return None
    facts = []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}; {ELSEWHERE}") from None
    except ValueError:
        raise no_log(file) from None
    for place, line in enumerate(lines):
        try:
            fact = json.loads(line)
            facts.append({**fact, "kind": str(fact["kind"])})
        except (ValueError, KeyError, TypeError):
            if line and place < len(lines) - 1:
                raise BadInput(f"{file}: line {place + 1} is no fact of a search; {ELSEWHERE}") from None
    if not facts or facts[0]["kind"] != "search" or facts[0].get("schema_version") != SCHEMA_VERSION:
        raise no_log(file)
    return None if facts[-1]["kind"] == "end" else facts


def no_log(file: Path) -> BadInput:
    """The error of a file whose facts are none of a search."""
    return BadInput(f"{file} is no log of this release; {ELSEWHERE}")
