"""Cross attention in plain aten, on padded rows with a mask."""

import torch
from torch import Tensor

from mfu_kernels.jagged import row_mask, to_padded


def cross_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    own_k: Tensor | None,
    own_v: Tensor | None,
    *,
    scale: float,
    max_length: int,
) -> Tensor:
    """softmax(scale q kᵀ, masked) v; own keys stand behind the row's, each seen by its query only."""
    keys, values = to_padded(k, offsets, max_length), to_padded(v, offsets, max_length)  # [B, L, H, d]
    num_rows, num_queries = q.shape[:2]
    seen = row_mask(offsets, max_length)[:, None].expand(-1, num_queries, -1)
    if own_k is not None and own_v is not None:
        keys, values = torch.cat([keys, own_k], dim=1), torch.cat([values, own_v], dim=1)
        itself = torch.eye(num_queries, dtype=torch.bool, device=q.device).expand(num_rows, -1, -1)
        seen = torch.cat([seen, itself], dim=2)
    scores = (q.transpose(1, 2) * scale) @ keys.permute(0, 2, 3, 1)
    # The lowest finite number, not -inf: an empty row then averages its padding, which is zeros, and stays free of NaN.
    weights = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min).softmax(dim=-1)
    return (weights @ values.transpose(1, 2)).transpose(1, 2)
