"""How much worse head may be: limits, and waivers that end, from `mfubench.toml` or `pyproject.toml`."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mfubench.errors import BadInput
from mfubench.toml_file import FILES, inside, read_toml, unknown

from .rows import Row

LIMITS: Mapping[str, float] = {
    "step_time": 0.03,
    "hardware_flops": 0.0,
    "wide_flops": 0.0,
    "bytes": 0.0,
    "kept_activations": 0.0,
    "peak_memory": 0.0,
    "spill_bytes": 0,
    "registers": 8,
    "instructions": 0.15,
}
ABSOLUTE = ("spill_bytes", "registers")  # by how many more; the others by which share
COMMANDS = ("check", "run", "self-check")  # whose options stand beside limits and waivers
ABOUT = "see `mfubench gate check --help`"


@dataclass(frozen=True, slots=True)
class Waiver:
    """A FAIL of a row whose name ``row`` matches, as a shell matches files, does not count up to and on ``until``."""

    row: str
    until: date
    reason: str

    def covers(self, row: Row) -> bool:
        """Whether it is this row that is waived."""
        return row.verdict == "FAIL" and fnmatchcase(row.name, self.row)


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits by what they limit, waivers, and the file that they are from, if any."""

    limits: Mapping[str, float]
    waivers: tuple[Waiver, ...] = ()
    file: str | None = None

    def waive(self, rows: list[Row], today: date) -> tuple[list[Row], list[str]]:
        """The rows with what is waived today, and a warning for each waiver that has ended or covers nothing."""
        warnings = []
        for waiver in self.waivers:
            covered = [row for row in rows if waiver.covers(row)]
            if today > waiver.until:
                if covered:
                    warnings.append(f"the waiver of {waiver.row!r} ended on {waiver.until}: {waiver.reason}")
                continue
            if not covered:
                warnings.append(f"the waiver of {waiver.row!r} covers nothing that fails; take it out")
            told = f"until {waiver.until}: {waiver.reason}"
            rows = [replace(row, waived=told) if row in covered else row for row in rows]
        return rows, warnings

    def to_document(self) -> dict[str, Any]:
        """As JSON."""
        waivers = [asdict(waiver) | {"until": str(waiver.until)} for waiver in self.waivers]
        return {"file": self.file, "limits": dict(self.limits), "waivers": waivers}


def read_policy(file: Path | None) -> Policy:
    """The policy of ``file``, or of the first of ``FILES`` in the working directory that has one; else the default.

    Raises:
        BadInput: it cannot be read, or says something that is unknown.
    """
    if file is not None:
        return _policy(_table(file), str(file))
    for name in FILES:
        path = Path(name)
        table = _table(path, needed=False) if path.is_file() else {}
        if table:
            return _policy(table, name)
    return Policy(LIMITS)


def _table(file: Path, *, needed: bool = True) -> dict[str, Any]:
    """What ``file`` says of the gate: under ``tool.mfubench.gate`` in a pyproject.toml, under ``gate`` elsewhere.

    Nothing only where it is not ``needed``, and there is no sign that it was meant to.
    """
    told, below = read_toml(file), FILES.get(file.name, ())
    keys = (*below, "gate")
    found = inside(told, keys)
    meant = needed or (not below and "mfubench" in str(told.get("tool", "")))
    if not found and meant:
        raise BadInput(f"{file} says nothing of the gate; its limits and waivers stand under [{'.'.join(keys)}] there")
    told = _known(found, ("limits", "waivers", *COMMANDS), f"{file}: {'.'.join(keys)}")
    return {name: value for name, value in told.items() if name not in COMMANDS}


def _policy(table: Mapping[str, Any], file: str) -> Policy:
    given = _known(table.get("limits", {}), LIMITS, f"{file}: limits")
    for name, value in given.items():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            unit = "a count" if name in ABSOLUTE else "a share, 0.03 for 3 %,"
            raise BadInput(f"{file}: limits.{name} = {value!r}; allowed: {unit} of 0 or more")
    waivers = table.get("waivers", [])
    if not isinstance(waivers, list):
        raise BadInput(f"{file}: waivers is no list; write [[...waivers]] before each")
    return Policy({**LIMITS, **given}, tuple(_waiver(each, file) for each in waivers), file)


def _waiver(told: Any, file: str) -> Waiver:
    given = _known(told, ("row", "until", "reason"), f"{file}: a waiver")
    kinds = {"row": str, "until": date, "reason": str}
    for name, kind in kinds.items():
        value = given.get(name)
        if type(value) is not kind or not value:
            raise BadInput(
                f'{file}: a waiver\'s {name} is {value!r}; it needs row = "NAME", until = 2026-12-31 and a reason'
            )
    return Waiver(**given)


def _known(table: Any, allowed: Any, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise BadInput(f"{where} is {type(table).__name__}, not a table; {ABOUT}")
    for key in table:
        if key not in allowed:
            raise unknown(key, allowed, where)
    return dict(table)
