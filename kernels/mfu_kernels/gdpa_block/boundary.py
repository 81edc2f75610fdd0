"""`gdpa_block` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.formulas import needs_grad
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes, check_head_dim


def _fwd_outputs(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    activation: list[str],
    scale: float,
    eps: float,
    max_length: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The block's output [T, H, d]; for a backward to come also o [T, H, d], and of each event the mean and 1 / std
    of x and 1 / rms of o, fp32 [3, T]; both empty unless ``save``."""
    shape = x.shape if save else (0,)
    return x.new_empty(x.shape), x.new_empty(shape), x.new_empty((3, *shape[:1]), dtype=torch.float32)


def _bwd_outputs(
    grad: Tensor,
    x: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    inner: Tensor,
    statistics: Tensor,
    activation: list[str],
    scale: float,
    max_length: int,
    needs_x: bool,
    needs_k: bool,
    needs_v: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, k and v, each empty if it is not needed."""
    wanted = ((x, needs_x), (k, needs_k), (v, needs_v))
    dx, dk, dv = (tensor.new_empty(tensor.shape if needed else (0,)) for tensor, needed in wanted)
    return dx, dk, dv


_forward = define(
    "gdpa_block_fwd(Tensor x, Tensor k, Tensor v, Tensor offsets, str[] activation, float scale, float eps, "
    "SymInt max_length, bool save) -> (Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.gdpa_block.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "gdpa_block_bwd(Tensor grad, Tensor x, Tensor k, Tensor v, Tensor offsets, Tensor inner, Tensor statistics, "
    "str[] activation, float scale, SymInt max_length, bool needs_x, bool needs_k, bool needs_v) "
    "-> (Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.gdpa_block.kernel_bwd:backward",
    outputs=_bwd_outputs,
)


class _GdpaBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        k: Tensor,
        v: Tensor,
        offsets: Tensor,
        activation: list[str],
        scale: float,
        eps: float,
        max_length: int,
        save: bool,
    ) -> Tensor:
        out, inner, statistics = _forward(x, k, v, offsets, activation, scale, eps, max_length, save)
        ctx.save_for_backward(x, k, v, offsets, inner, statistics)
        ctx.options = (activation, scale, max_length)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        grads = _backward(grad, *ctx.saved_tensors, *ctx.options, *needs)
        return *(g if needed else None for g, needed in zip(grads, needs, strict=True)), *[None] * 6


def gdpa_block_triton(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    activation: tuple[str, ...],
    eps: float,
    max_length: int,
) -> Tensor:
    """The kernels; arguments and result as `gdpa_block` has them."""
    check_dtypes("gdpa_block", x=x, k=k, v=v)
    check_head_dim("gdpa_block", x.shape[2])
    k, v = cast_for_matmul(k, v)
    save, names = needs_grad(x, k, v), list(activation)
    return _GdpaBlock.apply(x, k, v, offsets.contiguous(), names, scale, eps, max_length, save)  # type: ignore[no-any-return]
