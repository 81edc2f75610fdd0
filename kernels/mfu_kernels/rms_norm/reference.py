"""RMSNorm in plain aten."""

import torch.nn.functional as F
from torch import Tensor

from mfu_kernels.precision import widened


def rms_norm_reference(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight in fp32 or wider, rounded once at the end."""
    wide = widened(x)
    weight = None if weight is None else weight.to(wide.dtype)
    return F.rms_norm(wide, x.shape[-1:], weight, eps).to(x.dtype)
