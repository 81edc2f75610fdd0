"""Functions that the user names as ``package.module:function``."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mfubench.errors import BadInput

MOST = 200  # characters of an error


def named_function(target: str, use: str, usual: str = "function") -> Callable[..., Any]:
    """The function ``target``, imported with the working directory on the path.

    ``use`` says what it must be, and ``usual`` what it is called in examples.

    Raises:
        BadInput: it names none, its module raises or ends the process, or has no such function.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise BadInput(f"{target!r} names no function; give package.module:{usual}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        imported = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        dotted = module_name.removesuffix(".py").replace("/", ".").strip(".")
        hint = f"give {dotted}:{attribute}, a module's name; " if dotted != module_name else ""
        where = f"{hint}it is looked for from {Path.cwd()}"
        raise BadInput(f"cannot import {module_name}: {short(error)}; {where}") from error
    function = getattr(imported, attribute, None)
    if not callable(function):
        raise BadInput(f"{module_name} has no function {attribute!r}; {use}")
    return function  # type: ignore[no-any-return]


def short(error: BaseException) -> str:
    """An error in a few words: how it begins and how it ends, which is where compilers say what is wrong."""
    text = " ".join(str(error).split())
    if len(text) > MOST:
        text = f"{text[: MOST // 2]} ... {text[-MOST // 2 :]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
