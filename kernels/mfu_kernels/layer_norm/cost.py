"""What one call of `layer_norm` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import moved_once, num_bytes, without_matmul


def layer_norm_cost(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *, eps: float, impl: str
) -> OpCost:
    """Bytes only."""
    inputs = (x, weight, bias, residual)
    return without_matmul(moved_once(inputs, num_bytes(x), saved=(x, weight, residual)))
