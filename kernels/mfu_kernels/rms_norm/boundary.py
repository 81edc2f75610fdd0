"""`rms_norm` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.triton_checks import check_dtypes, check_row_width


def _fwd_outputs(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The normed rows [N, D] and 1 / rms of each, fp32 [N]."""
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=torch.float32)


def _bwd_outputs(grad: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x [N, D] and of the weight [D]; without a weight the second is empty."""
    return x.new_empty(x.shape), x.new_empty(0) if weight is None else torch.empty_like(weight)


_forward = define(
    "rms_norm_fwd(Tensor x, Tensor? weight, float eps) -> (Tensor, Tensor)",
    launcher="mfu_kernels.rms_norm.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "rms_norm_bwd(Tensor grad, Tensor x, Tensor? weight, Tensor rstd) -> (Tensor, Tensor)",
    launcher="mfu_kernels.rms_norm.kernel:backward",
    outputs=_bwd_outputs,
)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        out, rstd = _forward(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, rstd = ctx.saved_tensors
        dx, dweight = _backward(grad, x, weight, rstd)
        return dx, None if weight is None else dweight, None


def rms_norm_triton(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    """The kernel on the rows of ``x`` [..., D]; arguments and result as `rms_norm` has them."""
    check_dtypes("rms_norm", x=x, weight=weight)
    check_row_width("rms_norm", x.shape[-1])
    dense = None if weight is None else weight.contiguous()
    out: Tensor = _RmsNorm.apply(x.reshape(-1, x.shape[-1]), dense, eps)
    return out.view(x.shape)
