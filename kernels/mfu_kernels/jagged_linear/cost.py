"""What one call of `jagged_linear` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import matmul_bytes, moved_once, needs_grad, product_of_rows
from mfu_kernels.jagged import row_lengths


def jagged_linear_cost(x: Tensor, weight: Tensor, offsets: Tensor, *, max_length: int, impl: str) -> OpCost:
    """One product of 2 D E FLOPs a value, two for the gradients; the reference maps ``max_length`` values a row."""
    moved = moved_once((x, weight, offsets), matmul_bytes(x.shape[0] * weight.shape[2], x))
    product, needs = 2 * weight.shape[1] * weight.shape[2], (needs_grad(x), needs_grad(weight))
    return product_of_rows(row_lengths(offsets), product, needs, moved, max_length=max_length)
