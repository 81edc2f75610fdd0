"""What one call of `jagged_pool` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import moved_once, without_matmul


def jagged_pool_cost(values: Tensor, offsets: Tensor, *, mode: str, max_length: int | None, impl: str) -> OpCost:
    """Bytes only; backward does not read the values again."""
    output_bytes = (offsets.shape[0] - 1) * values.shape[1] * values.element_size()
    return without_matmul(moved_once((values, offsets), output_bytes, saved=(offsets,)))
