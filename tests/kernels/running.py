"""What tests that run kernels share: on which device, when they are skipped, how a call's results are told apart."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mfu_kernels.registry import interpreting
from mfubench.kernels.pairwise import pairwise_cover

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS_KERNELS = pytest.mark.skipif(
    DEVICE == "cpu" and not interpreting(), reason="needs a CUDA device, or TRITON_INTERPRET=1 before Python starts"
)
COMPILES = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
"""Dynamo makes an instance of autograd.Function, against which torch itself warns."""


class Called(TorchDispatchMode):
    """Notes the operators that run, except those that only detach."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.detach.default:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def in_pairs(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """One value of each factor: every value with every one of the other factors', not every combination."""
    return [tuple(case.values()) for case in pairwise_cover({str(n): values for n, values in enumerate(factors)})]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, the same for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def output_and_gradients(
    function: Callable[..., Tensor],
    tensors: Mapping[str, Tensor],
    needed: tuple[bool, ...] | None = None,
    **others: Any,
) -> dict[str, Tensor | None]:
    """``out`` and the gradient of each tensor by its name, None for one that is not ``needed`` (all are, if None)."""
    needed = (True,) * len(tensors) if needed is None else needed
    leaves = {
        name: tensor.detach().clone().requires_grad_(needs)
        for (name, tensor), needs in zip(tensors.items(), needed, strict=True)
    }
    out = function(**leaves, **others)
    if out.requires_grad:
        out.backward(draw(*out.shape, dtype=out.dtype))
    return {"out": out.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
