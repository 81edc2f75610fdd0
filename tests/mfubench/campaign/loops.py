"""A worker for tests: a task's name says what befalls it."""

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mfubench.campaign.runner import AGAIN, READY
from mfubench.campaign.store import ABSENT, DONE, FAILED


def act(pipe: Connection, device: str, folder: Path) -> None:
    """Answer each task by the word in its argument ``do``, with the process's id."""
    pipe.send(READY)
    while True:
        try:
            _, arguments = pipe.recv()
        except EOFError:
            return
        begin = time.monotonic()
        match arguments["do"]:
            case "sleep":
                time.sleep(2)
            case "crash":
                os._exit(9)
            case "hang":
                time.sleep(60)
        answers: dict[str, tuple[str, str | None, Any, bool]] = {
            "sleep": (DONE, None, {"span": (begin, time.monotonic())}, True),
            "succeed": (DONE, None, {"pid": os.getpid()}, True),
            "fail": (FAILED, "ValueError: no", None, True),
            "break": (FAILED, "CUDA error: an illegal memory access", None, False),
            "again": (AGAIN, None, {"do": "succeed"}, False),
            "absent": (ABSENT, "needs a GPU", None, True),
        }
        pipe.send(answers["succeed" if arguments["do"] == "die after" else arguments["do"]])
        if arguments["do"] == "die after":
            os._exit(9)
