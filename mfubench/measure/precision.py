"""How fp32 products round their factors: a setting of the process, which torch has under an old and a new name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

_backends: Any = torch.backends  # whose types leave some of it out
Precision = Literal["highest", "high"]  # as they are, or rounded to TF32
PRECISIONS: dict[str, Precision] = {"fp32": "highest", "tf32": "high"}  # by the dtype that a workload asks for


@contextmanager
def fp32_products(precision: Precision) -> Iterator[None]:
    """Inside, this process's fp32 products have ``precision``.

    Compilers read the old name, which raises where the new one alone was set; so the old one is set, and sets both.
    """
    matmuls = [_backends.cuda.matmul, _backends.mkldnn.matmul]
    old, new = _old(), [matmul.fp32_precision for matmul in matmuls]
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(old)
        for matmul, before in zip(matmuls, new, strict=True):
            matmul.fp32_precision = before


def rounds_factors(device: torch.device) -> bool:
    """Whether fp32 products on ``device`` round their factors now."""
    own = (_backends.cuda if device.type == "cuda" else _backends.mkldnn).matmul.fp32_precision
    return (_backends.fp32_precision if own == "none" else own) in ("tf32", "bf16")


def _old() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the new name alone was set, and the old one is as it is at the start
        return "highest"
