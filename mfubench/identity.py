"""Whose a folder is: what two calls must have in common for the second to go on with what the first has measured."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfubench.errors import BadInput

SHOWS = ("report", "cli")  # folders of mfubench whose code changes no measurement
ELSEWHERE = "choose another --out, or remove what is there"
# What is a hash tells a reader nothing.
HASHED = {"architecture", "code", "data", "data_fingerprint", "data_hash", "model_code", "model_hash"}


def code_hash() -> str:
    """A hash of the sources of the three packages, whatever git says of them: results of other code are other results.

    Without those that only show what was measured.
    """
    import mfu_kernels
    import mfu_models
    import mfubench

    digest = hashlib.sha256()
    for package in (mfu_kernels, mfu_models, mfubench):
        folder = Path(package.__path__[0])
        for file in sorted(folder.rglob("*.py")):
            name = file.relative_to(folder)
            if name.parts[0] not in SHOWS:
                digest.update(name.as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def require_same(file: Path, kind: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to go on with what another ladder, search or such (``kind``) has measured: ``file`` holds its identity.

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
        raise BadInput(f"{file} belongs to another {kind} ({'; '.join(told)}); {ELSEWHERE}")
