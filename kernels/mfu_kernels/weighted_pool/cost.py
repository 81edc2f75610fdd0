"""What one call of `weighted_pool` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost, PassCost
from mfu_kernels.formulas import matmul_bytes, moved_once, needs_grad
from mfu_kernels.jagged import row_lengths


def weighted_pool_cost(values: Tensor, weights: Tensor, offsets: Tensor, *, max_length: int, impl: str) -> OpCost:
    """One product of 2 D FLOPs a value, two for the gradients; the reference sums ``max_length`` values a row."""
    lengths = row_lengths(offsets)
    product = 2 * values.shape[1]
    moved = moved_once((values, weights, offsets), matmul_bytes(len(lengths) * values.shape[1], values))

    def products(count: int, bytes_moved: int) -> PassCost:
        model, padded = sum(lengths), len(lengths) * max(lengths)
        hardware = len(lengths) * max_length
        flops = count * product
        return PassCost(flops * model, flops * padded, flops * hardware, bytes_moved)

    return OpCost(products(1, moved.fwd), products(needs_grad(values) + needs_grad(weights), moved.bwd))
