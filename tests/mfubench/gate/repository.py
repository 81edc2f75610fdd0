"""A user's repository with a model, for the gate to look at."""

import subprocess
from pathlib import Path

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.last(self.first(x).relu())


def build():
    return Net(), lambda size, device: (torch.ones(size, 8, device=device),)
"""
AS_USED = "self.first(x).relu()"


def git(folder: Path, *arguments: str) -> str:
    """What git prints; its author is nobody."""
    nobody = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *nobody, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def a_repository(folder: Path, name: str = "net") -> Path:
    """A repository whose branch main has the model in ``name``.py, on a branch of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / f"{name}.py").write_text(MODEL, encoding="utf-8")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a model")
    git(folder, "checkout", "--quiet", "-b", "change")
    return folder


def edit(file: Path, old: str, new: str) -> None:
    """Change a file in place."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
