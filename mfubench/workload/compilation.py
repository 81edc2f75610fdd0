"""Compiling a workload's module, and seeing what the compiler makes of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mfubench.errors import BadInput
from mfubench.measure.compiled import Compilation, watched
from mfubench.measure.scopes import module_names

from .patching import Undo, together
from .regions import compile_in_place, compile_regions, constant_floats
from .spec import Workload


@contextmanager
def compiled(workload: Workload) -> Iterator[Compilation | None]:
    """Inside, the workload's module is compiled as ``--compile`` says; what is compiled, or None where nothing can be.

    A user's own module may be compiled already, in whole or in part: that is undone, to be done again in sight.

    Raises:
        BadInput: both the user and ``--compile`` want the module compiled.
    """
    if workload.spec.compile == "none" and not workload.may_be_compiled:
        yield None
        return
    torch.compiler.reset()
    with compiled_in_place(workload), watched(module_names(workload.module)) as compilation:
        yield compilation


@contextmanager
def compiled_in_place(workload: Workload) -> Iterator[None]:
    """The same, unwatched.

    Raises:
        BadInput: both the user and ``--compile`` want the module compiled.
    """
    undo = _compile(workload)
    try:
        yield
    finally:
        undo()


def _compile(workload: Workload) -> Undo:
    kind, module = workload.spec.compile, workload.module
    if kind == "none":
        return together([])
    if hasattr(module, "_orig_mod"):
        raise BadInput(f"--compile {kind}: the model is wrapped in torch.compile already; leave --compile out")
    settings = [constant_floats()] if workload.needed is not None else []  # a user's model may change its own
    if kind == "regions":
        return together([*settings, compile_regions(module, dynamic=True)])
    mode = "reduce-overhead" if kind == "cudagraphs" else None
    return together([*settings, compile_in_place(module, dynamic=True, mode=mode)])
