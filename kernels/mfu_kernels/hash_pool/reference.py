"""Hash pooling in plain aten, without padding, one group of bits after another."""

import torch
from torch import Tensor

from mfu_kernels.jagged import row_of_each
from mfu_kernels.precision import widened


def hash_pool_reference(
    values: Tensor, hashes: Tensor, query_hashes: Tensor, offsets: Tensor, *, bits: int, max_length: int | None
) -> Tensor:
    """Sum in fp32 or wider the values whose bits of a group all agree; ``max_length`` is not needed."""
    rows = row_of_each(offsets, values.shape[0])
    agree = (hashes >= 0) == (query_hashes >= 0)[rows]
    matches = agree.unflatten(1, (-1, bits)).all(dim=-1)  # [T, G]
    wide = widened(values)
    empty = wide.new_zeros(offsets.shape[0] - 1, values.shape[1])
    groups = [empty.index_add(0, rows, wide * match[:, None]) for match in matches.unbind(1)]
    return torch.stack(groups, dim=1).to(values.dtype)
