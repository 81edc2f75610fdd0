"""What one call of `seed_pooling` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import Pairs, attention_cost, matmul_bytes, moved_once, needs_grad
from mfu_kernels.jagged import row_lengths


def seed_pooling_cost(
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    angles: Tensor | None,
    *,
    scale: float,
    max_length: int,
    packed: Tensor | None = None,
    impl: str,
) -> OpCost:
    """Two products of 2 H d S FLOPs an event; the reference executes them for ``max_length`` events a row.

    The kernel's backward makes the scores again.
    """
    lengths = row_lengths(offsets)
    events = (sum(lengths), len(lengths) * max(lengths), len(lengths) * max_length)
    pairs = Pairs(*(seeds.shape[0] * n for n in events)).run_by(impl)
    moved = moved_once((seeds, k, v, offsets, angles), matmul_bytes(len(lengths) * seeds.numel(), seeds))
    width = seeds.shape[1] * seeds.shape[2]
    needs = (needs_grad(seeds), needs_grad(k, angles), needs_grad(v))  # gradients of angles pass through keys
    return attention_cost(pairs, width, needs, moved, repeated=int(impl == "triton"))
