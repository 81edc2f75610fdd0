"""What one call of `gdpa` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import Pairs, attention_cost, matmul_bytes, moved_once, needs_grad
from mfu_kernels.jagged import row_lengths


def dense_kv_pairs(offsets: Tensor, num_kv: int, max_length: int) -> Pairs:
    """Every query of a row meets ``num_kv`` keys of that row's own."""
    lengths = row_lengths(offsets)
    queries = (sum(lengths), len(lengths) * max(lengths), len(lengths) * max_length)
    return Pairs(*(num_kv * n for n in queries))


def gdpa_cost(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    activation: tuple[str, ...],
    max_length: int,
    impl: str,
) -> OpCost:
    """Two products of 2 H d n_kv FLOPs a query; the reference executes them for ``max_length`` queries a row.

    The kernel's backward makes the scores again.
    """
    pairs = dense_kv_pairs(offsets, k.shape[1], max_length).run_by(impl)
    moved = moved_once((q, k, v, offsets), matmul_bytes(q.numel(), q))
    needs = (needs_grad(q), needs_grad(k), needs_grad(v))
    return attention_cost(pairs, q.shape[1] * q.shape[2], needs, moved, repeated=int(impl == "triton"))
