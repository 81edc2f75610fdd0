"""The lock: for each GPU, the configs that won a measurement, with its date and figures. Committed beside the code."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from .modes import MetaParameters

SCHEMA_VERSION = 1
FILE_NAME = "lock.json"


@cache
def entries() -> tuple[Mapping[str, Any], ...]:
    """Every entry: kernel, device, key, config, date, ms, versions.

    Raises:
        RuntimeError: the file is of another schema.
    """
    document = json.loads((files("mfu_kernels") / FILE_NAME).read_text())
    if document.get("schema_version") != SCHEMA_VERSION:
        raise RuntimeError(f"{FILE_NAME} has schema_version {document.get('schema_version')}, not {SCHEMA_VERSION}")
    return tuple(document["entries"])


def key_text(key: MetaParameters) -> str:
    """One spelling for a key, such as ``d=128 num_keys=256``."""
    return " ".join(f"{name}={key[name]}" for name in sorted(key))


@cache
def _by_place() -> Mapping[tuple[str, str, str], Mapping[str, Any]]:
    return {(entry["kernel"], entry["device"], entry["key"]): entry["config"] for entry in entries()}


def locked_config(kernel: str, device_name: str, key: MetaParameters) -> Mapping[str, Any] | None:
    """The config, as arguments of `launching.config`, that won for this kernel, GPU and key, or None."""
    return _by_place().get((kernel, device_name, key_text(key)))
