"""HSTU attention in plain aten, on padded rows with a mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mfu_kernels.jagged import from_padded, to_padded


def _distances(offsets: Tensor, num_candidates: int, max_length: int) -> tuple[Tensor, Tensor]:
    """Position of each token, int64 [B, L], and how far each key lies behind each query, int64 [B, L, L]."""
    history = (offsets.diff() - num_candidates).clamp(min=0)
    tokens = torch.arange(max_length, device=offsets.device)
    positions = torch.minimum(tokens, history[:, None])  # all candidates, and the padding, follow the history
    return positions, positions[:, :, None] - positions[:, None, :]


def hstu_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    *,
    norm_length: int,
    alpha: float,
    window: int | None,
    first_keys: int,
    num_candidates: int,
    max_length: int,
) -> Tensor:
    """SiLU(alpha q kᵀ + bias), masked, over N, times v."""
    queries, keys, values = (to_padded(t, offsets, max_length).transpose(1, 2) for t in (q, k, v))  # [B, H, L, d]
    scores = (queries * alpha) @ keys.mT
    positions, behind = _distances(offsets, num_candidates, max_length)
    if bias is not None:
        by_distance = bias[:, behind.clamp(0, bias.shape[1] - 1)].transpose(0, 1)
        scores = scores + by_distance.to(scores.dtype)
    near = behind > 0
    if window is not None:
        near = near & ((behind <= window) | (positions < first_keys)[:, None, :])
    seen = near | torch.eye(max_length, dtype=torch.bool, device=q.device)
    weights = F.silu(scores).masked_fill(~seen[:, None], 0) / norm_length
    return from_padded((weights @ values).transpose(1, 2), offsets, q.shape[0])
