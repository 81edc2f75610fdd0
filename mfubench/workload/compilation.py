"""Compiling a workload's module, and seeing what the compiler makes of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mfubench.errors import BadInput
from mfubench.measure.compiled import Compilation, watched
from mfubench.measure.scopes import module_names

from .patching import Undo, together
from .regions import MODEL, REGIONS, compile_region
from .spec import Workload


@contextmanager
def compiled(workload: Workload) -> Iterator[Compilation | None]:
    """Inside, the workload's module is compiled as ``--compile`` says; what is compiled, or None where nothing can be.

    A user's own module may be compiled already, in whole or in part: that is undone, to be done again in sight.

    Raises:
        BadInput: both the user and ``--compile`` want the module compiled.
    """
    if not workload.compiles:
        yield None
        return
    torch.compiler.reset()
    with compiled_in_place(workload), watched(module_names(workload.module)) as compilation:
        yield compilation


def settling_steps(workload: Workload) -> int:
    """Steps until its pace holds: one on each input set, whose shapes may be compiled for.

    Where a CUDA graph may be captured of each, two more: one runs it to warm up, one records it.
    """
    return len(workload.inputs) * (3 if workload.compiles and workload.device.type == "cuda" else 1)


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
    return compile_region(
        module,
        REGIONS if kind == REGIONS else MODEL,
        dynamic=True,
        cudagraphs=kind == "cudagraphs",
        floats_change=workload.needed is None,  # a user's model may change its own
    )
