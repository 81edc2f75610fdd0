"""What one call of `jagged_softmax` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import moved_once, num_bytes, without_matmul


def jagged_softmax_cost(scores: Tensor, offsets: Tensor, *, max_length: int | None, impl: str) -> OpCost:
    """Bytes only; backward reads the output, which is as large as the scores."""
    return without_matmul(moved_once((scores, offsets), num_bytes(scores)))
