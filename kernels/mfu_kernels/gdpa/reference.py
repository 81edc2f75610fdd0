"""GDPA in plain aten, on padded rows."""

from torch import Tensor

from mfu_kernels.activations import activate
from mfu_kernels.jagged import from_padded, to_padded


def gdpa_reference(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, scale: float, activation: tuple[str, ...], max_length: int
) -> Tensor:
    """act(scale q kᵀ) v; padded queries are computed too and dropped at the end."""
    queries = to_padded(q, offsets, max_length).transpose(1, 2)  # [B, H, L, d]
    keys, values = k.transpose(1, 2), v.transpose(1, 2)  # [B, H, n_kv, d]
    weights = activate((queries * scale) @ keys.mT, activation)
    return from_padded((weights @ values).transpose(1, 2), offsets, q.shape[0])
