"""Processes where Triton compiles, whatever the tests' own does."""

import os
import runpy
import sys
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryDirectory
from types import ModuleType

from mfubench.group import forking

LIMIT_S = 600.0


def process(*arguments: str, **settings: str) -> CompletedProcess[str]:
    """Python with these arguments: -c and code, -m and a module, or a script.

    It is forked where torch is loaded already, as what the tool starts is, but otherwise a process like any other: its
    environment, its working directory and its streams are its own. What Python and torch read of the environment while
    they start is that of the first.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **settings}
    with TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("out", "err")]
        child = forking().Process(target=_run, args=(environment, arguments, *map(str, streams)))
        child.start()
        child.join(LIMIT_S)
        if child.exitcode is None:
            child.kill()
            raise TimeoutExpired([sys.executable, *arguments], LIMIT_S)
        return CompletedProcess(arguments, child.exitcode, *(stream.read_text() for stream in streams))


def python(code: str, *arguments: str, **settings: str) -> CompletedProcess[str]:
    """``code`` there."""
    return process("-c", code, *arguments, **settings)


def mfubench(*arguments: str) -> CompletedProcess[str]:
    """The command line there."""
    return python("from mfubench.cli import main\nif __name__ == '__main__': main()", *arguments)


def _run(environment: dict[str, str], arguments: tuple[str, ...], out: str, err: str) -> None:
    """In the forked process: what the interpreter does with these arguments."""
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate((out, err), start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    kind, *rest = arguments
    if kind == "-c":
        code, *given = rest
        sys.argv = ["-c", *given]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(code, vars(main))
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(kind, run_name="__main__")
