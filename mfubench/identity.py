"""Whose a folder is: what two calls must have in common for the second to go on with what the first has measured."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mfubench.errors import BadInput

SHOWS = ("report", "cli")  # folders of mfubench whose code changes no measurement
ELSEWHERE = "choose another --out, or remove what is there"
# What is a hash tells a reader nothing.
HASHED = {
    "architecture", "code", "data", "data_fingerprint", "data_hash", "kernels", "model_code", "model_hash", "training",
}  # fmt: skip


def code_hash() -> str:
    """A hash of the sources of the three packages, whatever git says of them: results of other code are other results.

    Without those that only show what was measured.
    """
    import mfu_kernels
    import mfu_models
    import mfubench

    return _hash_of(mfu_kernels, mfu_models, mfubench)


def kernels_hash() -> str:
    """A hash of what a kernel's numeric verdict hangs on: its sources, those of its reference and of the contract.

    Models are no part of it, nor is `mfubench.tuning`: only a contract on a model's own step asks them. Nor is
    lock.json, as in `code_hash`: tuning holds a config's numbers to those that are proved before it locks it.
    """
    import mfu_kernels
    import mfubench.kernels

    return _hash_of(mfu_kernels, mfubench.kernels)


def digest(*parts: Any) -> str:
    """A short hash of JSON-ready parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _hash_of(*packages: ModuleType) -> str:
    found = hashlib.sha256()
    for package in packages:
        folder = Path(package.__path__[0])
        for file in sorted(folder.rglob("*.py")):
            name = file.relative_to(folder)
            if name.parts[0] not in SHOWS:
                found.update(name.as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def require_same(
    file: Path, kind: str, there: Mapping[str, Any], here: Mapping[str, Any], *, instead: str = ELSEWHERE
) -> None:
    """Refuse to go on with what another ladder, search or such (``kind``) has measured: ``file`` holds its identity.

    ``instead`` is what to do.

    Raises:
        BadInput: naming all that differs.
    """
    here = json.loads(json.dumps(dict(here)))  # as a file gives it back
    told = [
        f"other {name}" if name in HASHED else f"{name} {there.get(name)} there, {here.get(name)} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if told:
        raise BadInput(f"{file} belongs to another {kind} ({'; '.join(told)}); {instead}")
