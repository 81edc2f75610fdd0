"""FLOPs and bytes of one dispatched torch operator.

torch's own registry counts what a kernel executes and never discounts a causal mask; attention is therefore counted
here, once for the mathematics and once for the hardware. Fused attention's backward repeats the scores: 5 matrix
products, of which the mathematics needs 4.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

SDPA_FORWARD = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)
SDPA_BACKWARD = (
    *(f"{name}_backward" for name in SDPA_FORWARD[:3]),
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)


class Flops(NamedTuple):
    """``model``: what the mathematics needs; ``hardware``: executed; ``recomputed``: of that, repeated work."""

    model: int
    hardware: int
    recomputed: int = 0


def dispatched_flops(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Flops | None:
    """FLOPs of one call, None where no formula is known (which is right for everything that multiplies no matrices)."""
    packet = getattr(func, "_overloadpacket", func)  # a higher-order operator has no overloads
    name = packet.__name__
    if name in SDPA_FORWARD or name in SDPA_BACKWARD:
        return _attention(func, args, kwargs)
    if name in _MULTIPLY_ADDS:
        return _same(2 * _MULTIPLY_ADDS[name](args))
    if packet in flop_registry:
        return _same(int(flop_registry[packet](*args, **kwargs, out_val=out)))
    return None


def _same(flops: int) -> Flops:
    return Flops(flops, flops)


# Multiply-adds of what torch's registry leaves out.
_MULTIPLY_ADDS = {
    "mv": lambda a: a[0].numel(),
    "addmv": lambda a: a[1].numel(),
    "dot": lambda a: a[0].numel(),
    "vdot": lambda a: a[0].numel(),
    "addbmm": lambda a: a[1].numel() * a[2].shape[-1],
    "_native_multi_head_attention": lambda a: _whole_attention(*a[:4]),
}


def _whole_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, width: int) -> int:
    """nn.MultiheadAttention outside training, one operator: projections in and out, scores, weighted sum."""
    batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    return batch * width * ((2 * queries + keys + value.shape[1]) * width + 2 * queries * keys)


def _attention(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Flops:
    named = _named(func, args, kwargs)
    q, k, v = named["query"], named["key"], named["value"]
    queries, keys = q.shape[-2], k.shape[-2]
    pairs = queries * keys
    if named.get("is_causal"):
        # The mask keeps key <= query, counted from the upper left corner.
        kept = min(queries, keys)
        pairs = kept * (kept + 1) // 2 + max(0, queries - keys) * keys
    rows = int(q.shape[:-2].numel())
    scores, values = 2 * rows * pairs * q.shape[-1], 2 * rows * pairs * v.shape[-1]
    if func._overloadpacket.__name__ in SDPA_FORWARD:
        return _same(scores + values)
    model = 2 * (scores + values)
    return Flops(model, model + scores, recomputed=scores)


@cache
def _moves_nothing(func: Any) -> bool:
    """Whether a call only looks at its input's memory, or makes memory without writing it."""
    if not isinstance(func, torch._ops.OpOverload):
        return False
    if func._overloadpacket.__name__.startswith(("empty", "new_empty")):
        return True
    returns = func._schema.returns
    aliases = [value.alias_info for value in returns]
    return bool(returns) and all(alias is not None and not alias.is_write for alias in aliases)


def dispatched_bytes(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Least bytes that one call moves: each input read once and each output written once; a view moves none.

    Of a table that rows are looked up in, no more is read than one row for each index.
    """
    if _moves_nothing(func):
        return 0
    moved = sum(_nbytes(leaf) for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor))
    if not isinstance(func, torch._ops.OpOverload):
        return moved
    named = _named(func, args, kwargs)
    rows = _bytes_of_rows(func._overloadpacket.__name__, named, out)
    tables = [_nbytes(named[name]) for name in TABLES if isinstance(named.get(name), torch.Tensor)]
    return moved if rows is None else moved - sum(max(0, table - rows) for table in tables)


TABLES = ("weight", "self", "host_weights", "dev_weights", "uvm_weights", "lxu_cache_weights")
LOOK_UPS = ("embedding", "index_select", "index", "_unsafe_index", "gather")


def _bytes_of_rows(name: str, named: dict[str, Any], out: Any) -> int | None:
    """Bytes of the rows that a call looks up in a table, None where it reads its inputs whole."""
    if name in LOOK_UPS:
        return _nbytes(out)
    if name.startswith("_embedding_bag") and "weight" in named:
        return int(named["indices"].numel() * named["weight"][:1].nbytes)
    if "host_weights" in named and "max_D" in named:  # FBGEMM's tables, of one width at most
        return int(named["indices"].numel() * named["max_D"] * named["host_weights"].element_size())
    return None


def _named(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs


def _nbytes(tensor: torch.Tensor) -> int:
    if tensor.layout != torch.strided:
        return int(tensor._values().nbytes + tensor._indices().nbytes) if tensor.layout == torch.sparse_coo else 0
    # An expanded tensor has more elements than memory.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
