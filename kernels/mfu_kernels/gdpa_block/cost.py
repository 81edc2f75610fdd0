"""What one call of `gdpa_block` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import attention_cost, moved_once, needs_grad, num_bytes
from mfu_kernels.gdpa.cost import dense_kv_pairs


def gdpa_block_cost(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    activation: tuple[str, ...],
    eps: float,
    max_length: int,
    impl: str,
) -> OpCost:
    """The products of `gdpa`, whose queries need gradients if ``x`` does; bytes as if all of it were one kernel."""
    pairs = dense_kv_pairs(offsets, k.shape[1], max_length)
    moved = moved_once((x, k, v, offsets), num_bytes(x))
    return attention_cost(pairs, x.shape[1] * x.shape[2], (needs_grad(x), needs_grad(k), needs_grad(v)), moved)
