"""Options whose default a file in the working directory sets: ``mfubench.toml``, else ``pyproject.toml``.

A table for each command, with the long names of its options: ``[profile]``, ``[gate.run]``; in pyproject.toml below
``tool.mfubench``. What the command line says goes before, but for flags, which it has no way to take back. No
environment variable does: a measurement follows from what was typed and from files that can be committed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from mfubench.errors import BadInput
from mfubench.toml_file import FILES, inside, read_toml, unknown

NOT_SET = ("--help", "--debug", "--version", "--json", "--quiet", "--verbose", "--out")  # are of one call
FLAG, ONE, SEVERAL = "true or false", "text or a number", "text or a number, or a list of them"
ELSEWHERE = {"gate": ("limits", "waivers")}  # what else a group's table holds; `mfubench.gate.policy` reads it


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a command; ``key`` is what files call it, ``parameter`` what the code does."""

    command: tuple[str, ...]
    key: str
    parameter: str
    default: Any
    takes: str
    given: Any  # the parser's own parameter

    def value(self, given: Any, where: str) -> Any:
        """``given`` as the parser of the command line takes it.

        Raises:
            BadInput: it is no value, or none of that kind.
        """
        listed = given if isinstance(given, list) else [given]
        fits = all(isinstance(each, bool) == (self.takes == FLAG) and _is_plain(each) for each in listed)
        if not fits or (isinstance(given, list) and self.takes != SEVERAL):
            raise BadInput(f"{where}: {self.key} = {given!r}; allowed: {self.takes}")
        return listed if self.takes == SEVERAL else given

    def parse(self, value: Any, context: typer.Context) -> Any:
        """The value as the parser of the command line hands it to the command.

        Raises:
            BadInput: it does not.
        """
        try:
            return self.given.process_value(context, value)
        except typer.BadParameter as error:
            raise BadInput(f"{self.key} = {value!r}: {error.message.rstrip('.')}") from None


def options_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[Option]:
    """All options of a command and of those below it that a file may set."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from options_of(inner, (*path, name))
    for parameter in command.params if path else ():
        long = next((name for name in parameter.opts if name.startswith("--")), None)
        if long is not None and long not in NOT_SET:
            takes = FLAG if parameter.is_flag else SEVERAL if parameter.multiple else ONE
            yield Option(path, long.removeprefix("--"), str(parameter.name), parameter.default, takes, parameter)


def read_defaults(command: Any) -> tuple[dict[str, Any], str | None]:
    """What the file sets, nested by command as the parser of the command line takes it, and the file's name.

    Raises:
        BadInput: it cannot be read, or names a command or an option that there is not.
    """
    here = {name: Path(name) for name in FILES if Path(name).is_file()}
    tables = {name: table for name, file in here.items() if (table := inside(read_toml(file), FILES[name]))}
    if len(tables) > 1:
        raise BadInput(f"{' and '.join(tables)} both configure mfubench; keep one of them")
    if not tables:
        return {}, None
    [(name, table)] = tables.items()
    return _known(table, command, ".".join((name, *FILES[name]))), name


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, int)
        or (isinstance(value, str) and value != "")
        or (isinstance(value, float) and math.isfinite(value))
    )


def _known(table: Any, command: Any, where: str, path: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise BadInput(f"{where} is {table!r}, not a table")
    inner = getattr(command, "commands", {})
    options = {option.key: option for option in options_of(command, path) if option.command == path}
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key in inner:
            found[key] = _known(value, inner[key], f"{where}: {key}", (*path, key))
        elif key.replace("_", "-") in options:
            option = options[key.replace("_", "-")]
            found[option.parameter] = option.value(value, where)
        elif f"--{key}" in NOT_SET:
            raise BadInput(f"{where}: {key} belongs to one call; give it on the command line")
        elif key not in ELSEWHERE.get(".".join(path), ()):
            raise unknown(key, [*inner, *options, *ELSEWHERE.get(".".join(path), ())], where)
    return found
