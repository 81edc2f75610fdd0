"""Work for tests of workers: a word says what befalls it."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from mfubench.worker import NotHere, PartBroke, Watch


def act(watch: Watch, *, arguments: Mapping[str, Any], without: Mapping[str, str], **_: Any) -> Any:
    """Do what the argument ``do`` says, and answer with the process's id."""
    begin = time.monotonic()
    match arguments["do"]:
        case "sleep":
            time.sleep(2)
            return {"span": (begin, time.monotonic())}
        case "crash":
            os._exit(9)
        case "hang":
            time.sleep(60)
        case "hang with a child":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            watch.so_far({"pids": [os.getpid(), child.pid]})
            time.sleep(60)
        case "so far, then hang":
            watch.so_far({"rows": [1]})
            time.sleep(60)
        case "fill the device":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 GiB")
        case "fail":
            raise ValueError("no")
        case "parts":
            return _parts(watch, arguments["parts"], without)
        case "import":
            module = importlib.import_module(arguments["module"])
            return {"file": module.__file__, "folder": os.getcwd()}
        case "absent":
            raise NotHere("needs a GPU")
    return {"pid": os.getpid()}


def _parts(watch: Watch, parts: Mapping[str, str], without: Mapping[str, str]) -> dict[str, Any]:
    """Each part does what is said of it, unless it is left out."""
    watch.so_far({"ours": 1})
    for name, does in parts.items():
        if name in without:
            continue
        with watch.part(name):
            match does:
                case "hang":
                    time.sleep(60)
                case "crash":
                    os._exit(9)
                case "fault":
                    raise PartBroke(name, "wrote where it should not")
    return {"pid": os.getpid(), "done": [name for name in parts if name not in without], "without": dict(without)}
