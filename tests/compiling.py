"""Processes where Triton compiles, whatever the tests' own does."""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryDirectory
from types import ModuleType

LIMIT_S = 600.0
IMPORTED = ["torch._dynamo", "triton"]  # what takes seconds, and nothing of ours


def process(*arguments: str, **settings: str) -> CompletedProcess[str]:
    """Python with these arguments: -c and code, -m and a module, or a script.

    It is forked where torch is imported already, once for all of them, but otherwise a process like any other: its
    environment, its working directory and its streams are its own. What Python and torch read of the environment while
    they start is that of the first.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **settings}
    with TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("out", "err")]
        child = _forking().Process(target=_run, args=(environment, arguments, *map(str, streams)))
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


def _forking() -> ForkServerContext:
    """What starts processes by forking one that has done these imports, where nothing is interpreted."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    interpreted = os.environ.pop("TRITON_INTERPRET", None)
    try:
        ensure_running()
    finally:
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted
    return context


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
