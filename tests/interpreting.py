"""Triton's interpreter, made quicker where it repeats itself: tests run tens of thousands of functions in it."""

from types import FunctionType
from typing import Any


def prepare_once_a_launch() -> None:
    """Let the interpreter look through ``triton.language`` once for each module in a launch, not at each call in it.

    At every call of a device function it replaces by its own what it finds in the language as the function's module
    sees it. Within a launch that finds nothing new after the first time, and takes a third of all its time.
    """
    from triton.runtime import interpreter

    prepare, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    prepared: set[int] = set()
    launching = False

    def prepare_new(fn: FunctionType) -> Any:
        if launching and id(fn.__globals__) in prepared:
            return interpreter._LangPatchScope()  # which changes nothing, and is asked to restore nothing
        prepared.add(id(fn.__globals__))
        return prepare(fn)

    def launch_and_forget(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal launching
        prepared.clear()
        launching = True
        try:
            launch(self, *args, **kwargs)
        finally:
            launching = False

    interpreter._patch_lang = prepare_new
    interpreter.GridExecutor.__call__ = launch_and_forget
