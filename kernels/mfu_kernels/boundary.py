"""The operator boundary of a triton implementation: thin operators without autograd, which stands outside them.

An op defines one operator for its forward and one for its backward, so that compilers, counters and profilers see each
as one call. Nothing here imports triton: an operator's launcher is imported when it first runs, which may be inside
``torch.compile``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, library

from .modes import compiling_ahead

NAMESPACE = "mfubench"
_LIBRARY = library.Library(NAMESPACE, "FRAGMENT")


def define(schema: str, *, launcher: str, outputs: Callable[..., Any]) -> Callable[..., Any]:
    """The operator ``mfubench::NAME`` of a schema such as ``rms_norm_fwd(Tensor x, float eps) -> Tensor``.

    Args:
        schema: in PyTorch's schema language, arguments by position.
        launcher: ``module:function`` that takes those arguments and launches the kernels.
        outputs: takes the same arguments and makes the empty outputs, on any device, without reading a number.
    """
    name = schema.partition("(")[0]

    @cache
    def resolved() -> Callable[..., Any]:
        module, _, function = launcher.partition(":")
        return getattr(import_module(module), function)  # type: ignore[no-any-return]

    def launch(*args: Any) -> Any:
        return resolved()(*args)

    def fake(*args: Any) -> Any:
        return launch(*args) if compiling_ahead() else outputs(*args)

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):  # on a CPU triton's interpreter runs it
        _LIBRARY.impl(name, launch, key)
    library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default  # type: ignore[no-any-return]


def separate(given: Sequence[Tensor], dim: int = 1) -> Sequence[Tensor]:
    """What an op takes as several tensors: those, or the slices along ``dim`` of the one that they are packed in."""
    return given if len(given) > 1 else given[0].unbind(dim)


def apart(side_by_side: Tensor, needed: Sequence[bool], dim: int = 1) -> Iterator[Tensor | None]:
    """Gradients that a kernel wrote ``side_by_side`` along ``dim``, as views in the places that are ``needed``."""
    each = iter(side_by_side.unbind(dim))
    return (next(each) if needs else None for needs in needed)


def as_given(side_by_side: Tensor, needed: Sequence[bool], dim: int = 1) -> Iterable[Tensor | None]:
    """The same for what `separate` takes: where one packed tensor was given, its gradient is whole."""
    return apart(side_by_side, needed, dim) if len(needed) > 1 else (side_by_side if needed[0] else None,)
