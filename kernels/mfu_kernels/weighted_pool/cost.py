"""What one call of `weighted_pool` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import matmul_bytes, moved_once, needs_grad, product_of_rows
from mfu_kernels.jagged import row_lengths


def weighted_pool_cost(values: Tensor, weights: Tensor, offsets: Tensor, *, max_length: int, impl: str) -> OpCost:
    """One product of 2 D FLOPs a value, two for the gradients; the reference sums ``max_length`` values a row."""
    lengths, width = row_lengths(offsets), values.shape[1]
    moved = moved_once((values, weights, offsets), matmul_bytes(len(lengths) * width, values))
    return product_of_rows(lengths, 2 * width, (needs_grad(values), needs_grad(weights)), moved, max_length=max_length)
