"""In which dtype ops compute: matmuls as autocast says, statistics and angles at least in fp32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_on_meta: torch.dtype | None = None


@contextmanager
def autocast_on_meta(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, `matmul_dtype` of tensors on "meta", which autocast does not know, is ``dtype``; None is without it."""
    global _on_meta
    before, _on_meta = _on_meta, dtype
    try:
        yield
    finally:
        _on_meta = before


def widened(x: Tensor) -> Tensor:
    """``x`` in fp32, or as it is if it is fp64."""
    return x if x.dtype == torch.float64 else x.float()


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a matmul of ``x`` computes and returns; autocast leaves fp64 alone."""
    if x.dtype == torch.float64:
        return x.dtype
    return autocast_dtype(x.device) or x.dtype


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on ``device`` now; None without it."""
    if device.type == "meta":
        return _on_meta
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
