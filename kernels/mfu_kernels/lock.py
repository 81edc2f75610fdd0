"""The lock: for each GPU, the configs that won a measurement, with its date and figures. Committed beside the code."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from .modes import MetaParameters

SCHEMA_VERSION = 1
FILE_NAME = "lock.json"
DEFAULT = "default"  # where a config comes from that is locked nowhere

Entry = Mapping[str, Any]


def as_locked(config: Any) -> dict[str, Any]:
    """A triton.Config as the arguments of `launching.config`."""
    return {**config.kwargs, "num_warps": config.num_warps, "num_stages": config.num_stages}


def spelled(config: Any) -> str:
    """A triton.Config in a line, its warps and stages among its constants."""
    return key_text(as_locked(config))


@dataclass(frozen=True, slots=True)
class Locked:
    """A config, as arguments of `launching.config`, and the GPU that it won on."""

    config: Mapping[str, Any]
    device: str


@dataclass(frozen=True, slots=True)
class Places:
    """Locked configs by kernel, GPU and key, and by kernel, generation and key, the newest first.

    ``chosen`` is what launches chose among them, kept by those who do: they are many.
    """

    by_device: Mapping[tuple[str, str, str], Locked]
    by_target: Mapping[tuple[str, str, str], Sequence[Locked]]
    chosen: dict[Any, Any] = field(default_factory=dict)


_adopted: list[Entry] = []
_holds: Places | None = None  # made when it is first asked for


@cache
def committed() -> tuple[Entry, ...]:
    """Every committed entry: kernel, device, its target, key, config, and what it won: date, ms, versions.

    ``ms`` and ``ms_of_default`` are of rounds after those in which all configs were timed, and ``ratio_of_fastest`` is
    what was fastest in those beside what launches took, with its 95 % interval, timed anew; ``config_before`` and
    ``ms_before`` are of the latter. Entries without a ratio are older: their ``ms`` is that of the first rounds, the
    least of many.

    Raises:
        RuntimeError: the file is of another schema.
    """
    document = json.loads((files("mfu_kernels") / FILE_NAME).read_text(encoding="utf-8"))
    if document.get("schema_version") != SCHEMA_VERSION:
        raise RuntimeError(f"{FILE_NAME} has schema_version {document.get('schema_version')}, not {SCHEMA_VERSION}")
    return tuple(document["entries"])


def key_text(key: MetaParameters) -> str:
    """One spelling for a key, such as ``d=128 num_keys=256``."""
    return " ".join(f"{name}={key[name]}" for name in sorted(key))


def adopt(entries: Sequence[Entry]) -> None:
    """Let ``entries``, which were measured here, hold in this process before the committed ones; twice is once."""
    global _holds
    _adopted.extend(entry for entry in entries if entry not in _adopted)
    _holds = None


def merged() -> list[Entry]:
    """The committed entries with those that this process adopted in their places, as they would be committed."""
    return with_entries(_adopted)


def with_entries(entries: Sequence[Entry]) -> list[Entry]:
    """The committed entries with ``entries`` in their places."""
    return in_places(committed(), entries)


def in_places(before: Sequence[Entry], entries: Sequence[Entry]) -> list[Entry]:
    """``before`` with ``entries`` in the places of those for the same kernel, GPU and key."""
    return list({_place(entry): entry for entry in (*before, *entries)}.values())


def _place(entry: Entry) -> tuple[str, str, str]:
    return entry["kernel"], entry["device"], entry["key"]


def places() -> Places:
    """What holds in this process now."""
    global _holds
    if _holds is None:
        _holds = places_with([])
    return _holds


def places_with(entries: Sequence[Entry]) -> Places:
    """What would hold if ``entries`` were adopted."""
    by_device: dict[tuple[str, str, str], Locked] = {}
    by_target: dict[tuple[str, str, str], list[Locked]] = {}
    for entry in sorted(with_entries([*_adopted, *entries]), key=lambda entry: entry["date"], reverse=True):
        locked = Locked(entry["config"], entry["device"])
        by_device[_place(entry)] = locked
        by_target.setdefault((entry["kernel"], entry["target"], entry["key"]), []).append(locked)
    return Places(by_device, by_target)


@contextmanager
def holding(wanted: Places) -> Iterator[None]:
    """Inside, ``wanted`` holds in place of what does, and nothing that was chosen before is forgotten."""
    global _holds
    before, _holds = _holds, wanted
    try:
        yield
    finally:
        _holds = before


def locked_here(kernel: str, device_name: str, key: MetaParameters) -> Locked | None:
    """The config that won for this kernel and key on the GPU of this very name, or None."""
    return places().by_device.get((kernel, device_name, key_text(key)))


def locked_config(kernel: str, device_name: str, target: str, key: MetaParameters) -> Locked | None:
    """The config that won for this kernel and key on this GPU, else on another of its generation, or None.

    GPUs of one generation, such as sm_90, run the same code within the same limits: what won on one of them is a
    better guess for another than a config that was measured nowhere.
    """
    return locked_here(kernel, device_name, key) or next(iter(locked_configs(kernel, target, key)), None)


def locked_configs(kernel: str, target: str, key: MetaParameters) -> Sequence[Locked]:
    """The configs that won for this kernel and key on GPUs of one generation, the newest first."""
    return places().by_target.get((kernel, target, key_text(key)), ())


def entries_of(kernel: str, key: MetaParameters) -> list[Entry]:
    """What is locked for this kernel and key, on any GPU."""
    return [entry for entry in merged() if (entry["kernel"], entry["key"]) == (kernel, key_text(key))]
