"""Compiling a workload's module, and seeing what the compiler makes of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mfubench.errors import BadInput
from mfubench.measure.compiled import Compilation, watched
from mfubench.measure.scopes import module_names

from .regions import compile_in_place, compile_regions, constant_floats
from .spec import Workload


@contextmanager
def compiled(workload: Workload) -> Iterator[tuple[nn.Module, Compilation | None]]:
    """The module that runs in the steps, and what is compiled inside this context; None where nothing can be.

    A user's own module may be compiled already, in whole or in part: that is undone, to be done again in sight.

    Raises:
        BadInput: both the user and ``--compile`` want the module compiled.
    """
    if workload.spec.compile == "none" and not workload.may_be_compiled:
        yield workload.module, None
        return
    torch.compiler.reset()
    module = compiled_module(workload)
    with watched(module_names(module)) as compilation:
        yield module, compilation


def compiled_module(workload: Workload) -> nn.Module:
    """The module that runs in the steps: the workload's own, or with ``--compile`` a compiled one.

    Raises:
        BadInput: both the user and ``--compile`` want the module compiled.
    """
    kind, module = workload.spec.compile, workload.module
    if kind == "none":
        return module
    if hasattr(module, "_orig_mod"):
        raise BadInput(f"--compile {kind}: the model is wrapped in torch.compile already; leave --compile out")
    constant_floats()
    if kind == "regions":
        compile_regions(module, dynamic=True)
    else:
        compile_in_place(module, dynamic=True, mode="reduce-overhead" if kind == "cudagraphs" else None)
    return module
