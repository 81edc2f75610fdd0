"""What one call of `cross_attention` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import Pairs, attention_cost, matmul_bytes, moved_once, needs_grad
from mfu_kernels.jagged import row_lengths


def cross_attention_cost(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    own_k: Tensor | None,
    own_v: Tensor | None,
    *,
    scale: float,
    max_length: int,
    impl: str,
) -> OpCost:
    """Two products of 2 H d FLOPs for each query and key that it sees: its row's events, and its own if it has one.

    The reference executes ``max_length`` keys a row, and every query with every own key of its row.
    """
    lengths = row_lengths(offsets)
    num_rows, num_queries, num_heads, width = q.shape
    own = int(own_k is not None)
    pairs = Pairs(
        model=num_queries * (sum(lengths) + num_rows * own),
        padded=num_queries * num_rows * (max(lengths) + own),
        hardware=num_queries * num_rows * (max_length + num_queries * own),
    )
    moved = moved_once((q, k, v, offsets, own_k, own_v), matmul_bytes(q.numel(), q))
    needs = (needs_grad(q), needs_grad(k, own_k), needs_grad(v, own_v))
    return attention_cost(pairs, num_heads * width, needs, moved)
