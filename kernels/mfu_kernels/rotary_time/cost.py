"""What one call of `rotary_time` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import moved_once, needs_grad, num_bytes, without_matmul


def rotary_time_cost(x: Tensor, angles: Tensor, *, impl: str) -> OpCost:
    """Bytes only; backward reads x again just for the gradient of the angles."""
    saved = (x, angles) if needs_grad(angles) else (angles,)
    return without_matmul(moved_once((x, angles), num_bytes(x), saved=saved))
