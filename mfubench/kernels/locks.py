"""Lock files: the configs that won on a GPU, written beside a measurement and read to be used again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfu_kernels.lock import FILE_NAME, SCHEMA_VERSION, Entry, adopt, as_locked
from mfubench.errors import BadInput
from mfubench.run import write_text

AGAIN = "make one with `mfubench kernels tune`"
TEXTS = ("kernel", "device", "target", "key", "date")
TRUTH = {"True": True, "False": False}


def write_lock(entries: Sequence[Entry], folder: Path) -> None:
    """Write ``entries`` to ``folder``, in the form of the committed file."""
    lock = {"schema_version": SCHEMA_VERSION, "entries": list(entries)}
    write_text(folder / FILE_NAME, json.dumps(lock, indent=1) + "\n")


def read_lock(file: Path) -> list[Entry]:
    """The entries of a lock file, or of the one in a folder.

    Raises:
        BadInput: there is none, it is none, or one of its kernels or configs is not this release's.
    """
    file = file / FILE_NAME if file.is_dir() else file
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}; {AGAIN}") from None
    except ValueError:
        raise BadInput(f"{file} is not JSON; {AGAIN}") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION or not isinstance(document.get("entries"), list):
        raise BadInput(f"{file} is no lock of schema_version {SCHEMA_VERSION}; {AGAIN}")
    for entry in document["entries"]:
        why = _unfit(entry)
        if why:
            raise BadInput(f"{file}: {why}; {AGAIN}")
    return document["entries"]  # type: ignore[no-any-return]


def took_over(entry: Entry) -> bool:
    """Whether a tuned entry's config took the place of what launches took."""
    return bool(entry["config"] != entry["config_before"])


def use_lock(file: Path | str) -> None:
    """Let launches in this process take the configs of a lock file before those of this release.

    Raises:
        BadInput: as `read_lock`.
    """
    adopt(read_lock(Path(file)))


def _unfit(entry: Any) -> str | None:
    """Why a launch could not take the entry's config."""
    from mfu_kernels.launching import KERNELS

    from .catalog import kernels_of, ops_with_kernels

    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in TEXTS):
        return f"{repr(entry)[:60]} is no entry: {', '.join(TEXTS)} are texts"
    for op in ops_with_kernels():
        kernels_of(op)  # which registers them
    kernel = KERNELS.get(entry["kernel"])
    if kernel is None:
        return f"this release has no {entry['kernel']}"
    try:
        space = [as_locked(config) for config in kernel.space(key_of(entry["key"]))]
    except Exception:  # what another release's key lacks
        return f"{entry['kernel']} has no key {entry['key']!r} in this release"
    if entry.get("config") not in space:
        return f"{entry['kernel']} has no config {entry.get('config')} for {entry['key']} in this release"
    return None


def key_of(text: str) -> Mapping[str, int | str | bool]:
    """The key that `mfu_kernels.lock.key_text` spelled."""
    pairs = (part.split("=", 1) for part in text.split())
    return {name: TRUTH.get(value, int(value) if value.isdigit() else value) for name, value in pairs}
