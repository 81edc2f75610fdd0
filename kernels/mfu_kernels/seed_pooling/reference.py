"""Seed pooling in plain aten, on padded rows with a mask."""

import torch
from torch import Tensor

from mfu_kernels.jagged import row_mask, to_padded
from mfu_kernels.rotary_time.reference import rotary_time_reference


def seed_pooling_reference(
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    angles: Tensor | None,
    *,
    scale: float,
    max_length: int,
    packed: Tensor | None = None,
) -> Tensor:
    """softmax(scale seeds kᵀ, masked) v with the same seeds for every row, after rotating k by ``angles``.

    ``packed``, of which k and v may be slices, is for implementations that write its gradient as one.
    """
    if angles is not None:
        k = rotary_time_reference(k, angles)
    keys, values = (to_padded(t, offsets, max_length).transpose(1, 2) for t in (k, v))  # [B, H, L, d]
    queries = seeds.transpose(0, 1)[None]  # [1, H, S, d]
    scores = (queries * scale) @ keys.mT
    seen = row_mask(offsets, max_length)[:, None, None, :]
    # The lowest finite number, not -inf: an empty row then averages its padding, which is zeros, and stays free of NaN.
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return (weights @ values).transpose(1, 2)
