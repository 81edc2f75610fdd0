"""How fp32 products round their factors: a setting of the process, which torch has under an old and a new name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

_backends: Any = torch.backends  # whose types leave some of it out
Precision = Literal["highest", "high"]  # as they are, or rounded to TF32
PRECISIONS: dict[str, Precision] = {"fp32": "highest", "tf32": "high"}  # by the dtype that a workload asks for


@contextmanager
def fp32_products(precision: Precision) -> Iterator[None]:
    """Inside, this process's fp32 products have ``precision``, those of cuDNN's convolutions and RNNs too.

    Compilers read the old names, which raise where the new ones alone were set; so the old ones are set, and set both.
    """
    cudnns = [_backends.cudnn.conv, _backends.cudnn.rnn]
    places = [_backends.cuda.matmul, _backends.mkldnn.matmul, *cudnns]
    old = _old(torch.get_float32_matmul_precision, "highest")
    old_cudnn = _old(lambda: _backends.cudnn.allow_tf32, True)
    new = [place.fp32_precision for place in places]
    torch.set_float32_matmul_precision(precision)
    _backends.cudnn.allow_tf32 = precision == "high"
    for cudnn in cudnns:  # which the old name leaves to the setting for all
        cudnn.fp32_precision = "tf32" if precision == "high" else "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(old)
        _backends.cudnn.allow_tf32 = old_cudnn
        for place, before in zip(places, new, strict=True):
            place.fp32_precision = before


def rounds_factors(device: torch.device) -> bool:
    """Whether fp32 products on ``device`` round their factors now."""
    own = (_backends.cuda if device.type == "cuda" else _backends.mkldnn).matmul.fp32_precision
    return (_backends.fp32_precision if own == "none" else own) in ("tf32", "bf16")


def _old(read: Callable[[], Any], at_the_start: Any) -> Any:
    """What an old name says; where the new one alone was set, which ``read`` raises for, it is as at the start."""
    try:
        return read()
    except RuntimeError:
        return at_the_start
