"""`sum_kron_linear` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes


def _fwd_outputs(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """[B, M, E]."""
    return x.new_empty(x.shape[0], z.shape[2], w.shape[2])


def _bwd_outputs(
    grad: Tensor, x: Tensor, z: Tensor, w: Tensor, needs_x: bool, needs_z: bool, needs_w: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, z and w, each empty if it is not needed."""
    wanted = ((x, needs_x), (z, needs_z), (w, needs_w))
    dx, dz, dw = (tensor.new_empty(tensor.shape if needed else (0,)) for tensor, needed in wanted)
    return dx, dz, dw


_forward = define(
    "sum_kron_linear_fwd(Tensor x, Tensor z, Tensor w) -> Tensor",
    launcher="mfu_kernels.sum_kron_linear.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "sum_kron_linear_bwd(Tensor grad, Tensor x, Tensor z, Tensor w, bool needs_x, bool needs_z, bool needs_w) "
    "-> (Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.sum_kron_linear.backward:backward",
    outputs=_bwd_outputs,
)


class _SumKronLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, z, w)
        return _forward(x, z, w)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        grads = _backward(grad, *ctx.saved_tensors, *needs)
        return tuple(g if needed else None for g, needed in zip(grads, needs, strict=True))


def sum_kron_linear_triton(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """The kernel, or matmuls where it would not pay; arguments and result as `sum_kron_linear` has them."""
    check_dtypes("sum_kron_linear", x=x, z=z, w=w)
    return _SumKronLinear.apply(*cast_for_matmul(x, z, w))  # type: ignore[no-any-return]
