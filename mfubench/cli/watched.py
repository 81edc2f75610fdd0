"""What a process that runs a model tells the one that waits beside it (`guard`), while it still can."""

import json
import os
from dataclasses import dataclass
from typing import Any

STAGE_BYTES = 200  # that are kept of it


@dataclass(frozen=True, slots=True)
class Shared:
    """Files in memory that both processes have: what the child told, the stage that it is in, and the stack that Python
    writes in a crash.
    """

    told: int
    stage: int
    stack: int

    def facts(self) -> dict[str, Any]:
        """What was told, of each the last."""
        try:
            found: dict[str, Any] = json.loads(text_of(self.told))
        except ValueError:
            return {}
        return found


WAITED_FOR: list[Shared] = []  # in the child


def tell(**facts: Any) -> bool:
    """Say to who waits for this process, if anybody does, what it should know in the end; whether anybody does.

    ``model``, whose it is; ``scratch``, a folder to take away; ``kept``, the run.json of what is measured, and ``out``,
    where it belongs; ``over``, that this process has told its end itself.
    """
    for shared in WAITED_FOR:
        text = json.dumps({**shared.facts(), **facts}).encode()
        os.ftruncate(shared.told, 0)
        os.pwrite(shared.told, text, 0)
    return bool(WAITED_FOR)


def tell_stage(stage: str) -> None:
    """Say what runs now, in a microsecond: it is said between steps that are timed."""
    for shared in WAITED_FOR:
        os.pwrite(shared.stage, stage.encode()[:STAGE_BYTES].ljust(STAGE_BYTES), 0)


def text_of(file: int) -> str:
    """All that a file in memory holds."""
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
