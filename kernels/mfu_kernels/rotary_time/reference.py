"""Rotation of feature pairs in plain aten."""

import torch
from torch import Tensor

from mfu_kernels.precision import widened


def rotary_time_reference(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate (x_k, x_{k+d/2}) by angle k, the same for all heads; sine and cosine are in fp32 or wider."""
    first, second = widened(x).chunk(2, dim=-1)
    cos, sin = (turn[:, None, :] for turn in (widened(angles).cos(), widened(angles).sin()))
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x.dtype)
