"""`rotary_time` as a PyTorch operator, and the autograd around it: a gradient of ``x`` is the gradient turned back."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.formulas import needs_grad
from mfu_kernels.triton_checks import check_dtypes, check_head_dim

from .reference import rotary_time_reference


def _outputs(x: Tensor, angles: Tensor, back: bool) -> Tensor:
    """The turned ``x``, [T, H, d]."""
    return x.new_empty(x.shape)


rotate = define(
    "rotary_time(Tensor x, Tensor angles, bool back) -> Tensor",
    launcher="mfu_kernels.rotary_time.kernel:rotate",
    outputs=_outputs,
)


class _RotaryTime(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, angles: Tensor) -> Tensor:
        ctx.save_for_backward(angles)
        return rotate(x, angles, False)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return rotate(grad, *ctx.saved_tensors, True), None


def rotary_time_triton(x: Tensor, angles: Tensor) -> Tensor:
    """The kernel; arguments and result as `rotary_time` has them.

    It has no gradient of ``angles``: where one is needed, the reference runs.
    """
    check_dtypes("rotary_time", x=x, angles=angles)
    check_head_dim("rotary_time", x.shape[2])
    if needs_grad(angles):
        return rotary_time_reference(x, angles)
    out: Tensor = _RotaryTime.apply(x, angles)
    return out
