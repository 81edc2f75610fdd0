"""In which dtype ops compute: matmuls as autocast says, statistics and angles at least in fp32."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """``x`` in fp32, or as it is if it is fp64."""
    return x if x.dtype == torch.float64 else x.float()


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matmul of ``x`` computes and returns; autocast leaves fp64 and the device "meta" alone."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
