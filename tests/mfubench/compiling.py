"""Processes where Triton compiles, whatever the tests' own does."""

import os
import subprocess
import sys


def python(code: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """``code`` in a process where Triton compiles, whatever the tests' own does."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **settings}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def mfubench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line there."""
    return python("from mfubench.cli import main\nif __name__ == '__main__': main()", *arguments)
