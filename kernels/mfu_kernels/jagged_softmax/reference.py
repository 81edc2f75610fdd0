"""Jagged softmax in plain aten, without padding."""

from torch import Tensor

from mfu_kernels.jagged import row_of_each
from mfu_kernels.precision import widened


def jagged_softmax_reference(scores: Tensor, offsets: Tensor, *, max_length: int | None) -> Tensor:
    """exp(x - the row's largest), over its sum in fp32 or wider; ``max_length`` is not needed."""
    wide = widened(scores)
    rows = row_of_each(offsets, scores.shape[0])
    of_rows = wide.new_zeros(offsets.shape[0] - 1)
    largest = of_rows.scatter_reduce(0, rows, wide.detach(), "amax", include_self=False)  # cancels: needs no gradient
    raised = (wide - largest[rows]).exp()
    sums = of_rows.index_add(0, rows, raised)
    return (raised / sums[rows]).to(scores.dtype)
