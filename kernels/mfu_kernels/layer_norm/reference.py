"""LayerNorm in plain aten."""

import torch.nn.functional as F
from torch import Tensor

from mfu_kernels.precision import widened


def layer_norm_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *, eps: float
) -> Tensor:
    """Normalise x + residual in fp32 or wider, rounded once at the end."""
    wide = widened(x) if residual is None else widened(x) + widened(residual)
    weight, bias = (None if t is None else t.to(wide.dtype) for t in (weight, bias))
    return F.layer_norm(wide, x.shape[-1:], weight, bias, eps).to(x.dtype)
