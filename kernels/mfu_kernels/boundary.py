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

from .errors import UnsupportedImpl
from .modes import compiling_ahead
from .registry import interpreting

NAMESPACE = "mfubench"
_LIBRARY = library.Library(NAMESPACE, "FRAGMENT")


def define(schema: str, *, launcher: str, outputs: Callable[..., Any]) -> Callable[..., Any]:
    """The operator ``mfubench::NAME`` of a schema such as ``rms_norm_fwd(Tensor x, float eps) -> Tensor``.

    Args:
        schema: in PyTorch's schema language, arguments by position.
        launcher: ``module:function`` that takes those arguments and launches the kernels.
        outputs: takes the same arguments and makes the empty outputs, on any device, without reading a number.

    Raises (what is returned, when it is called):
        UnsupportedImpl: on a CPU without Triton's interpreter, or in bf16, which that computes wrongly; or autograd is
            to go through the operator, as ``create_graph`` asks for of a backward: it has no gradient of its own.
    """
    name = schema.partition("(")[0]

    @cache
    def resolved() -> Callable[..., Any]:
        module, _, function = launcher.partition(":")
        return getattr(import_module(module), function)  # type: ignore[no-any-return]

    def launch(*args: Any) -> Any:
        return resolved()(*args)

    def interpret(*args: Any) -> Any:
        if not compiling_ahead():
            _check_interpreter(name, args)
        return launch(*args)

    def fake(*args: Any) -> Any:
        return launch(*args) if compiling_ahead() else outputs(*args)

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, interpret, "CPU")
    _LIBRARY.impl(name, launch, "CUDA")
    library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # else the autograd function is around it
            _refuse_gradient(name, args)
        return operator(*args)

    return call


def _check_interpreter(name: str, args: Sequence[Any]) -> None:
    """It is there, and computes these dtypes rightly."""
    if not interpreting():
        raise UnsupportedImpl(f"{NAMESPACE}::{name} on a CPU needs TRITON_INTERPRET=1; or use impl='reference'")
    if any(isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 for arg in args):
        raise UnsupportedImpl(
            f"{NAMESPACE}::{name} on a CPU: Triton's interpreter computes bfloat16 wrongly; take float16 or "
            "float32, or impl='reference'"
        )


def _refuse_gradient(name: str, args: Sequence[Any]) -> None:
    """PyTorch would only warn, and take the gradient for zero."""
    if any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
        raise UnsupportedImpl(
            f"{NAMESPACE}::{name} cannot be differentiated, so impl='triton' has no second derivatives (create_graph); "
            "use impl='reference'"
        )


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
