"""Per-row linear map in plain aten, on padded rows."""

from torch import Tensor

from mfu_kernels.jagged import from_padded, to_padded


def jagged_linear_reference(x: Tensor, weight: Tensor, offsets: Tensor, *, max_length: int) -> Tensor:
    """x_b w_b for each row b; padded values are mapped too and dropped at the end."""
    return from_padded(to_padded(x, offsets, max_length) @ weight, offsets, x.shape[0])
