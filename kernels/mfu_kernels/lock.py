"""The lock: for each GPU, the configs that won a measurement, with its date and figures. Committed beside the code."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from .modes import MetaParameters

SCHEMA_VERSION = 1
FILE_NAME = "lock.json"


Entry = Mapping[str, Any]
_adopted: list[Entry] = []


@cache
def committed() -> tuple[Entry, ...]:
    """Every committed entry: kernel, device, its target, key, config, and what it won: date, ms, versions.

    ``ms`` and ``ms_of_default`` are of rounds after those in which all configs were timed, and ``ratio_of_fastest`` is
    what was fastest in those beside what launches took, with its 95 % interval, timed anew. Entries without it are
    older: their ``ms`` is that of the first rounds, the least of many.

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
    """Let ``entries``, which were just measured, hold in this process before the committed ones; twice is once."""
    _adopted.extend(entry for entry in entries if entry not in _adopted)
    by_place.cache_clear()


def merged() -> list[Entry]:
    """The committed entries with those that this process adopted in their places, as they would be committed."""
    return with_entries(_adopted)


def with_entries(entries: Sequence[Entry]) -> list[Entry]:
    """The committed entries with ``entries`` in their places."""
    return list({_place(entry): entry for entry in (*committed(), *entries)}.values())


def _place(entry: Entry) -> tuple[str, str, str]:
    return entry["kernel"], entry["device"], entry["key"]


@cache
def by_place() -> Mapping[tuple[str, str, str], Mapping[str, Any]]:
    """The config of each kernel, GPU and key; another object once something was adopted."""
    return {_place(entry): entry["config"] for entry in merged()}


def locked_config(kernel: str, device_name: str, key: MetaParameters) -> Mapping[str, Any] | None:
    """The config, as arguments of `launching.config`, that won for this kernel, GPU and key, or None."""
    return by_place().get((kernel, device_name, key_text(key)))


def locked_configs(kernel: str, target: str, key: MetaParameters) -> list[Mapping[str, Any]]:
    """The configs that won for this kernel and key on GPUs of one generation, such as sm_90."""
    of_target = [entry for entry in merged() if (entry["kernel"], entry.get("target")) == (kernel, target)]
    return [entry["config"] for entry in of_target if entry["key"] == key_text(key)]
