"""Absorbed seed pooling in plain aten, on padded rows with a mask."""

import torch
from torch import Tensor

from mfu_kernels.jagged import row_mask, to_padded


def absorbed_queries(seeds: Tensor, w_k: Tensor) -> Tensor:
    """seeds w_k, [H S, D]: what each head's seeds attend to x with, in place of to the keys x w_kᵀ."""
    return torch.bmm(seeds.transpose(0, 1), w_k).flatten(0, 1)


def projected(pooled: Tensor, w_v: Tensor) -> Tensor:
    """What each head's weights pooled of x, [B, H S, D], through that head's w_v: [B, S, H, d]."""
    return torch.einsum("bhsi,hdi->bshd", pooled.unflatten(1, (w_v.shape[0], -1)), w_v)


def seed_pooling_absorbed_reference(
    seeds: Tensor, x: Tensor, w_k: Tensor, w_v: Tensor, offsets: Tensor, *, scale: float, max_length: int
) -> Tensor:
    """((softmax(scale (seeds w_k) xᵀ, masked) x) w_vᵀ, a head at a time."""
    queries, events = absorbed_queries(seeds, w_k), to_padded(x, offsets, max_length)
    scores = (queries * scale) @ events.mT
    seen = row_mask(offsets, max_length)[:, None, :]
    # The lowest finite number, not -inf: an empty row then averages its padding, which is zeros, and stays free of NaN.
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return projected(weights @ events, w_v)
