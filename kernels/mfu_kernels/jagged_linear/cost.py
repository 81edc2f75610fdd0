"""What one call of `jagged_linear` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost, PassCost
from mfu_kernels.formulas import matmul_bytes, moved_once, needs_grad
from mfu_kernels.jagged import row_lengths


def jagged_linear_cost(x: Tensor, weight: Tensor, offsets: Tensor, *, max_length: int, impl: str) -> OpCost:
    """One product of 2 D E FLOPs a value, two for the gradients; the reference maps ``max_length`` values a row."""
    lengths = row_lengths(offsets)
    product = 2 * weight.shape[1] * weight.shape[2]
    moved = moved_once((x, weight, offsets), matmul_bytes(x.shape[0] * weight.shape[2], x))

    def products(count: int, bytes_moved: int) -> PassCost:
        model, padded = sum(lengths), len(lengths) * max(lengths)
        hardware = len(lengths) * max_length
        flops = count * product
        return PassCost(flops * model, flops * padded, flops * hardware, bytes_moved)

    return OpCost(products(1, moved.fwd), products(needs_grad(x) + needs_grad(weight), moved.bwd))
