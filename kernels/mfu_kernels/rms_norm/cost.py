"""What one call of `rms_norm` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import moved_once, num_bytes, without_matmul


def rms_norm_cost(x: Tensor, weight: Tensor | None, *, eps: float, impl: str) -> OpCost:
    """Bytes only."""
    return without_matmul(moved_once((x, weight), num_bytes(x)))
