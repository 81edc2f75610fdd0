"""Jagged pooling in plain aten, without padding."""

from torch import Tensor

from mfu_kernels.jagged import row_of_each
from mfu_kernels.precision import widened


def jagged_pool_reference(values: Tensor, offsets: Tensor, *, mode: str, max_length: int | None) -> Tensor:
    """Sum in fp32 or wider into each value's row; ``max_length`` is not needed."""
    wide = widened(values)
    sums = wide.new_zeros(offsets.shape[0] - 1, values.shape[1])
    sums = sums.index_add(0, row_of_each(offsets, values.shape[0]), wide)
    if mode == "mean":
        sums = sums / offsets.diff().clamp(min=1)[:, None]  # an empty row is 0 / 1
    return sums.to(values.dtype)
