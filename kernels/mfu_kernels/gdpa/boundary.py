"""`gdpa` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes, check_head_dim


def _fwd_outputs(q: Tensor, *_: Any) -> Tensor:
    """The output, dense as [T, H, d]."""
    return q.new_empty(q.shape)


def _bwd_outputs(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, dense; one that is not needed is empty."""
    dq, dk, dv = (x.new_empty(x.shape if needed else 0) for x, needed in zip((q, k, v), others[-1], strict=True))
    return dq, dk, dv


_forward = define(
    "gdpa_fwd(Tensor q, Tensor k, Tensor v, Tensor offsets, float scale, str[] activation, SymInt max_length) "
    "-> Tensor",
    launcher="mfu_kernels.gdpa.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "gdpa_bwd(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor offsets, float scale, str[] activation, "
    "SymInt max_length, bool[] needs) -> (Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.gdpa.kernel_bwd:backward",
    outputs=_bwd_outputs,
)


class _Gdpa(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float, activation: list[str], max_length: int
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, offsets)
        ctx.options = scale, activation, max_length
        return _forward(q, k, v, offsets, scale, activation, max_length)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:3])
        grads = _backward(grad, *ctx.saved_tensors, *ctx.options, needs)
        return *(x if needed else None for x, needed in zip(grads, needs, strict=True)), None, None, None, None


def gdpa_triton(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, scale: float, activation: tuple[str, ...], max_length: int
) -> Tensor:
    """The kernels; arguments and result as `gdpa` has them."""
    check_dtypes("gdpa", q=q, k=k, v=v)
    check_head_dim("gdpa", q.shape[-1])
    q, k, v = cast_for_matmul(q, k, v)
    return _Gdpa.apply(q, k, v, offsets.contiguous(), scale, list(activation), max_length)  # type: ignore[no-any-return]
