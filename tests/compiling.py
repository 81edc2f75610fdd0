"""Processes where Triton compiles, whatever the tests' own does."""

import os
import subprocess
import sys


def process(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **settings}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=600)


def python(code: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """``code`` there."""
    return process("-c", code, *arguments, **settings)


def mfubench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line there."""
    return python("from mfubench.cli import main\nif __name__ == '__main__': main()", *arguments)
