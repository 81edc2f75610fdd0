"""Functions that the user names as ``package.module:function``."""

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mfubench.errors import BadInput

MOST = 200  # characters of an error
MADE_WITH = ("torch", "triton", "numpy", "mfubench", "mfu_kernels", "mfu_models")


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
        where = f"{_as_module(module_name, attribute)}it is looked for from {Path.cwd()}"
        raise BadInput(f"cannot import {module_name}: {located(error)}; {where}") from error
    function = getattr(imported, attribute, None)
    if not callable(function):
        raise BadInput(f"{module_name} has no function {attribute!r}; {use}")
    return function  # type: ignore[no-any-return]


def _as_module(path: str, attribute: str) -> str:
    """How to name what is given as a file; nothing where it is a module's name."""
    if not path.endswith(".py") and "/" not in path:
        return ""
    file = Path(path).resolve().with_suffix("")
    if file.is_relative_to(Path.cwd()):
        return f"give {'.'.join(file.relative_to(Path.cwd()).parts)}:{attribute}, a module's name; "
    return f"run from {file.parent} and give {file.name}:{attribute}, a module's name; "


def short(error: BaseException) -> str:
    """An error in a few words: how it begins and how it ends, which is where compilers say what is wrong."""
    text = " ".join(str(error).split())
    if len(text) > MOST:
        text = f"{text[: MOST // 2]} ... {text[-MOST // 2 :]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def located(error: BaseException) -> str:
    """`short`, with the last line of the model's own code that it came through, if it came through any."""
    frames = traceback.extract_tb(error.__traceback__)
    place = own_line([(Path(frame.filename), frame.lineno or 0) for frame in reversed(frames)])
    return f"{short(error)} ({place})" if place else short(error)


def own_line(places: Iterable[tuple[Path, int]]) -> str | None:
    """The first of ``places``, files and lines, that is the model's own, as users call it; None if none is."""
    here = Path.cwd()
    for path, line in places:
        if _is_models(path):
            return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"
    return None


def _is_models(file: Path) -> bool:
    """Neither Python's nor ours nor torch's; other packages are whoever's model it is."""
    specs = [spec for name in MADE_WITH if (spec := find_spec(name))]
    makers = [place for spec in specs for place in spec.submodule_search_locations or ()]
    if not file.is_file() or any(file.is_relative_to(maker) for maker in makers):
        return False
    installed = not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    return installed or not file.is_relative_to(sysconfig.get_path("stdlib"))


def kind_of(value: Any) -> str:
    """What ``value`` is, with its article, for messages."""
    article = "an" if type(value).__name__[:1] in "aeiouAEIOU" else "a"
    return f"{article} {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
