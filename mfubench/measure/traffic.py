"""Bytes that one dispatched torch operator moves at least: what it reads, once, and what it writes, once."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from math import prod
from typing import Any

import torch

from .operators import arguments_by_name, dense_parts, tensors_of

# Which write over what they are given, and do not read it.
OVERWRITES = (
    *("copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_"),
    *("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_", "log_normal_", "cauchy_"),
)
# Arguments of which a call may want some rows, or places, alone; ``src`` may have more than there are places for.
TABLES = ("weight", "self", "src", "host_weights", "dev_weights", "uvm_weights", "lxu_cache_weights")
ROW_BY_ROW = ("add_", "sub_", "sparse_mask")  # with what holds rows alone, as optimizers of sparse gradients do
LOOK_UPS = ("embedding", "index_select", "index", "_unsafe_index", "gather", "take")
INTO_ROWS = ("index_add_", "index_copy_", "index_reduce_")  # as many as their source has
INTO_PLACES = ("scatter_", "scatter_add_", "scatter_reduce_")  # one for each index
PUTS = ("index_put_", "_index_put_impl_")
# How names begin of what moves nothing: memory that is not written, and views whose schemas do not say so.
NOTHING = ("empty", "new_empty", "record_stream", "_unsafe_view", "unsafe_split", "unsafe_chunk")


def dispatched_bytes(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Least bytes that one call moves: each input read once, each output written once; a view moves none.

    An argument that is changed in place is read and written, or only written where the call does not look at it. Of a
    table that rows are looked up in, no more is moved than one row for each index.
    """
    if not isinstance(func, torch._ops.OpOverload):
        return sum(map(tensor_bytes, tensors_of((args, kwargs, out))))
    if _moves_nothing(func):
        return 0
    named = arguments_by_name(func, args, kwargs)
    rows = _bytes_of_rows(func._overloadpacket.__name__, named, out)
    moved = sum(map(tensor_bytes, _made(func, out))) + _packed_bytes(func, args, out)
    for argument in func._schema.arguments:
        for tensor in tensors_of(named.get(argument.name)):
            size = tensor_bytes(tensor)
            if rows is not None and (argument.name in TABLES or argument.name.startswith("momentum")):
                size = min(size, rows)
            moved += size * _times(func, argument, named)
    return moved


def _times(func: torch._ops.OpOverload, argument: Any, named: Mapping[str, Any]) -> int:
    """How often a call goes through an argument: once to read it, once to write it."""
    name = func._overloadpacket.__name__
    if _is_only_asked(name, argument.name):
        return 0
    if argument.alias_info is None or not argument.alias_info.is_write:
        return 1
    if argument.is_out or (argument.name == "self" and _overwrites(name, named)):
        return 1
    # Fused optimizers write gradients only where they take a loss's scale off them, whatever their schemas say.
    return 1 if argument.name == "grads" and named.get("grad_scale") is None else 2


def _overwrites(name: str, named: Mapping[str, Any]) -> bool:
    """Whether what a call writes over is nothing to it: it may add instead, or reduce."""
    if name in PUTS:
        return not named.get("accumulate")
    return name in (*OVERWRITES, "index_copy_", "index_fill_") or (name == "scatter_" and named.get("reduce") is None)


def _is_only_asked(name: str, argument: str) -> bool:
    """Whether an argument's shape and type are all that a call wants of it."""
    of_a_pick = name.startswith("nll_loss") and name.endswith("_backward") and argument == "self"
    return name.startswith("new_") or name.endswith("_like") or of_a_pick


def _made(func: torch._ops.OpOverload, out: Any) -> Iterator[torch.Tensor]:
    """Outputs that are new memory: others are arguments, or views of them."""
    returns = func._schema.returns
    for value, made in zip(returns, out if len(returns) > 1 else [out], strict=False):
        if value.alias_info is None:
            yield from tensors_of(made)


@cache
def _moves_nothing(func: torch._ops.OpOverload) -> bool:
    """Whether a call only looks at its input's memory, makes memory without writing it, or keeps it."""
    if func._overloadpacket.__name__.startswith(NOTHING) or torch.Tag.inplace_view in func.tags:
        return True
    aliases = [value.alias_info for value in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _bytes_of_rows(name: str, named: Mapping[str, Any], out: Any) -> int | None:
    """Bytes of the rows that a call looks up in a table, or changes, None where it reads its inputs whole."""
    if name in LOOK_UPS:
        return tensor_bytes(out)
    if name.startswith("nll_loss"):  # one of each row
        return int(named["target"].numel() * named["self"].element_size())
    if name in (*INTO_ROWS, *INTO_PLACES, *PUTS, "index_fill_"):
        changed = _num_changed(name, named)
        return None if changed is None else changed * int(named["self"].element_size())
    if name in ROW_BY_ROW and named["self"].layout == torch.strided:
        rows = next((each for each in (named.get("other"), named.get("mask")) if _is_sparse(each)), None)
        return None if rows is None else int(rows._values().nbytes)
    if name.startswith(("_embedding_bag", "embedding_bag")) and {"weight", "indices"} <= named.keys():
        if not isinstance(named["weight"], torch.Tensor):  # packed
            return None
        return int(named["indices"].numel() * named["weight"][:1].nbytes)
    if "host_weights" in named and "max_D" in named:  # FBGEMM's tables, of one width at most
        return int(named["indices"].numel() * named["max_D"] * named["host_weights"].element_size())
    return None


def _num_changed(name: str, named: Mapping[str, Any]) -> int | None:
    """Numbers of a table that a call changes; None where only the numbers in a mask say."""
    table = named["self"]
    if name in INTO_ROWS:
        return int(named["source"].numel())
    if name in INTO_PLACES:
        return int(named["index"].numel())
    if name == "index_fill_":
        return int(named["index"].numel() * table.numel() // max(1, table.size(named["dim"])) if table.dim() else 1)
    given = [index for index in named["indices"] if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return None
    whole = (size for size, index in zip_longest(table.shape, named["indices"]) if index is None)
    return int(prod(torch.broadcast_shapes(*(index.shape for index in given))) * prod(whole))


def _packed_bytes(func: torch._ops.OpOverload, args: Sequence[Any], out: Any) -> int:
    """Bytes of a quantized layer's weights, in an object that does not show them: one for each, or two in fp16."""
    name = func._overloadpacket.__name__
    if not name.startswith("linear") or not any(isinstance(value, torch.ScriptObject) for value in args[1:]):
        return 0
    return int(args[0].shape[-1] * out.shape[-1]) * (2 if "fp16" in name else 1)


def _is_sparse(given: Any) -> bool:
    return isinstance(given, torch.Tensor) and given.layout == torch.sparse_coo


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes of memory that hold it: of a sparse one those of its parts, in oneDNN's layout those of its numbers."""
    if tensor.is_mkldnn:
        return tensor.numel() * tensor.element_size()
    if tensor.layout != torch.strided:
        return sum(part.nbytes for part in dense_parts(tensor))
    # An expanded tensor has more elements than memory.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
