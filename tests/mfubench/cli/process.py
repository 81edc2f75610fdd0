"""The command line as a process of its own, beside a model of the user's."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MODEL = """
import atexit, ctypes, os, sys
import torch


class Model(torch.nn.Module):
    def __init__(self, act, at):
        super().__init__()
        self.layer, self.act, self.left = torch.nn.Linear(4, 1), act, at

    def forward(self, x):
        self.left -= 1
        if self.left <= 0:
            self.act()
        return self.layer(x)


def made(act, at=1):
    return Model(act, at), lambda batch_size, device: (torch.ones(batch_size, 4, device=device),)


"""


def cli(folder: Path, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """``python -m mfubench`` with ``arguments``, in ``folder``, as a user has it: without Triton's interpreter."""
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120, **options}
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    paths.pop("TRITON_INTERPRET", None)
    return subprocess.run([sys.executable, "-m", "mfubench", *arguments], text=True, cwd=folder, env=paths, **given)
