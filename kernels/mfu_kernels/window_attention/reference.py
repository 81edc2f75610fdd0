"""Window attention in plain aten, on padded rows with a mask."""

import torch
from torch import Tensor

from mfu_kernels.jagged import from_padded, row_mask, to_padded
from mfu_kernels.rotary_time.reference import rotary_time_reference


def kept(max_length: int, window: int | None, causal: bool, device: torch.device) -> Tensor:
    """bool [max_length, max_length]: whether query i sees key j."""
    positions = torch.arange(max_length, device=device)
    behind = positions[:, None] - positions  # how far key j lies behind query i
    seen = behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
    return seen if window is None else seen & (behind.abs() <= window)


def window_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    angles: Tensor | None,
    *,
    window: int | None,
    causal: bool,
    scale: float,
    max_length: int,
    packed: Tensor | None = None,
) -> Tensor:
    """softmax(scale q kᵀ, masked) v, after rotating q and k by ``angles``.

    ``packed``, of which q, k and v may be slices, is for implementations that write its gradient as one.
    """
    if angles is not None:
        q, k = rotary_time_reference(q, angles), rotary_time_reference(k, angles)
    queries, keys, values = (to_padded(t, offsets, max_length).transpose(1, 2) for t in (q, k, v))  # [B, H, L, d]
    scores = (queries * scale) @ keys.mT
    seen = kept(max_length, window, causal, q.device) & row_mask(offsets, max_length)[:, None, None, :]
    # The lowest finite number, not -inf: a padded query may see no key, and NaN there would reach real keys' gradients.
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return from_padded((weights @ values).transpose(1, 2), offsets, q.shape[0])
