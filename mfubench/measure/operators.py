"""Sees every operator that a backend runs, whatever wraps it: what the count and the memory pass look through.

Two things hide operators from a plain dispatch mode. A tensor subclass, such as a jagged nested tensor, arrives as one
call on the wrapper; handing it back lets the operators on its parts come by in turn. Under ``torch.inference_mode``,
composite operators, such as ``linear``, arrive whole, because the autograd keys that would take them apart are skipped;
on a nested tensor that is no subclass they are whole: it has kernels of its own for them.
A tensor without numbers (`FakeTensor`) hides nothing; that its device is asked for is no operator.

And a mode changes what runs: torch's backward of indexing then adds to a copy of the zeros that it has just made, as it
cannot know whether those may be written to (``areAnyTensorSubclassLike`` in FunctionsManual.cpp). Here they may.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_HOLD_NOTHING = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
ATTRIBUTES = "prim"  # of a tensor, such as its device, which one without numbers is asked for as if by an operator
_ATEN: Any = torch.ops.aten
_ZEROS = (_ATEN.new_zeros.default, _ATEN.zeros.default, _ATEN.zeros_like.default)
_INTO_ZEROS = {  # what a backward runs under a mode -> without one
    _ATEN.index_put.default: _ATEN.index_put_.default,
    _ATEN.index_add.default: _ATEN.index_add_.default,
    _ATEN.scatter_add.default: _ATEN.scatter_add_.default,
    _ATEN.scatter.src: _ATEN.scatter_.src,
    _ATEN.put.default: _ATEN.put_.default,
    _ATEN.masked_scatter.default: _ATEN.masked_scatter_.default,
}


class OperatorMode(TorchDispatchMode):
    """Calls ``seen(func, args, kwargs, out)`` after each operator."""

    supports_higher_order_operators = True  # else a model with flex_attention could not run under it

    def __init__(self, seen: Callable[[Any, Any, dict[str, Any], Any], None]) -> None:
        super().__init__()
        self.seen = seen
        self._zeros: int | None = None  # the address of those that the operator before has made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(map(_wraps, types)):
            return NotImplemented
        if getattr(func, "namespace", "") == ATTRIBUTES:
            return func(*args, **kwargs)
        if _composite(func) and not any(map(is_nested, tree_leaves((args, kwargs)))):
            with self:
                return func.decompose(*args, **kwargs)
        if (
            func in _INTO_ZEROS
            and self._zeros is not None
            and self._zeros == _address(args[0])
            and _is_torchs_backward()
        ):
            func = _INTO_ZEROS[func]
        out = func(*args, **kwargs)
        self._zeros = _address(out) if func in _ZEROS else None
        try:
            self.seen(func, args, kwargs, out)
        except NotImplementedError as error:  # which tensor subclasses would take for the operator's own
            raise RuntimeError(f"{operator_name(func)} ran, and what it did cannot be told: {error}") from error
        return out


def _address(tensor: torch.Tensor) -> int | None:
    """Of its storage; None where it has none of its own."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided and not is_nested(tensor) else None


def _is_torchs_backward() -> bool:
    """Whether a node of torch's own runs, and no code of the model's: a Function's, or a forward that it repeats."""
    node = torch._C._current_autograd_node()
    own = isinstance(node, torch.autograd.function.BackwardCFunction)
    return node is not None and not own and not torch.is_grad_enabled()


def _wraps(kind: Any) -> bool:
    """Whether such tensors hand a call on to others that they hold."""
    return kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and not issubclass(kind, FakeTensor)


@cache
def _composite(func: Any) -> bool:
    """Whether it is made of others on every device: ``silu_backward`` could be, but has kernels of its own."""
    if not isinstance(func, torch._ops.OpOverload):
        return False
    has_kernel = partial(torch._C._dispatch_has_kernel_for_dispatch_key, func.name())
    return has_kernel("CompositeImplicitAutograd") and not any(map(has_kernel, ("CPU", "CUDA")))


def is_nested(value: Any) -> bool:
    """Whether it is a nested tensor of the kind that is no subclass: rows of any lengths, one call for all of them."""
    return isinstance(value, torch.Tensor) and value.is_nested and value.layout == torch.strided


def dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What holds it: itself, or a sparse tensor's numbers, then its indices; nothing where its layout hides that."""
    layout = tensor.layout
    if layout == torch.strided:
        return [tensor]
    if layout == torch.sparse_coo:
        return [tensor._values(), tensor._indices()]
    if layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.values(), tensor.crow_indices(), tensor.col_indices()]
    if layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.values(), tensor.ccol_indices(), tensor.row_indices()]
    return []


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """The tensors in what a call or a model was given or made: in lists, tuples, dicts, dataclasses, at any depth."""
    found: list[torch.Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[torch.Tensor]) -> None:
    """What is plain, as most arguments of operators are, is not given to torch's trees, which take thrice as long."""
    kind = type(tree)
    if isinstance(tree, torch.Tensor):
        found.append(tree)
    elif kind in (tuple, list):
        for part in tree:
            _gather(part, found)
    elif kind is dict:
        for part in tree.values():
            _gather(part, found)
    elif kind in _HOLD_NOTHING:
        return
    elif is_dataclass(kind):
        for field in fields(kind):
            _gather(getattr(tree, field.name), found)
    else:
        leaves = tree_leaves(tree)
        if not (len(leaves) == 1 and leaves[0] is tree):
            _gather(leaves, found)


def operator_name(func: Any) -> str:
    """``namespace::name`` of an operator, without its overload."""
    if isinstance(func, torch._ops.OpOverload):
        return f"{func.namespace}::{func._overloadpacket.__name__}"
    return f"higher_order::{func.name()}"


def arguments_by_name(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a call was given, by the names in its operator's schema."""
    return {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
