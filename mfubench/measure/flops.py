"""FLOPs of one dispatched torch operator.

torch's own registry counts what a kernel executes and never discounts a causal mask; attention is therefore counted
here, once for the mathematics and once for the hardware. Fused attention's backward repeats the scores: 5 matrix
products, of which the mathematics needs 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import flop_registry

from .operators import arguments_by_name

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
    named = arguments_by_name(func, args, kwargs)
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
