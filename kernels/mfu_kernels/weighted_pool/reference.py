"""Weighted pooling in plain aten, on padded rows."""

from torch import Tensor

from mfu_kernels.jagged import to_padded


def weighted_pool_reference(values: Tensor, weights: Tensor, offsets: Tensor, *, max_length: int) -> Tensor:
    """w_bᵀ v_b for each row b; padding has the weight 0."""
    rows = to_padded(values, offsets, max_length)
    row_weights = to_padded(weights, offsets, max_length)[:, None]
    return (row_weights @ rows).squeeze(1)
