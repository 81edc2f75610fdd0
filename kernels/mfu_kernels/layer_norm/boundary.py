"""`layer_norm` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.triton_checks import check_dtypes, check_row_width


def _fwd_outputs(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The normed rows [N, D], and mean and 1 / deviation of each, fp32 [N]."""
    mean = x.new_empty(x.shape[0], dtype=torch.float32)
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


def _bwd_outputs(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    needs_x: bool,
    needs_residual: bool,
    needs_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [N, D], of a residual of another dtype [N, D], and fp32 of weight and bias [2, D], for ``grad`` of
    N rows of D in any number of dimensions.

    One that is not needed has no rows; nor has the residual's where its dtype is that of x, as it is then x's.
    """
    rows, width = x.shape
    dtype = x.dtype if residual is None else residual.dtype
    own = dtype != x.dtype
    dx = x.new_empty(rows if needs_x or (needs_residual and not own) else 0, width)
    dresidual = x.new_empty(rows if needs_residual and own else 0, width, dtype=dtype)
    return dx, dresidual, mean.new_empty(2 if needs_affine else 0, width)


_forward = define(
    "layer_norm_fwd(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps) -> (Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.layer_norm.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "layer_norm_bwd(Tensor grad, Tensor x, Tensor? weight, Tensor? residual, Tensor mean, Tensor rstd, "
    "bool needs_x, bool needs_residual, bool needs_affine) -> (Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.layer_norm.kernel:backward",
    outputs=_bwd_outputs,
)


class _LayerNorm(torch.autograd.Function):
    """Of tensors as they come, whose rows it takes: a view before it would lay a strided gradient out anew."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
    ) -> Tensor:
        rows, added = (None if t is None else t.reshape(-1, x.shape[-1]) for t in (x, residual))
        out, mean, rstd = _forward(rows, weight, bias, added, eps)
        ctx.save_for_backward(rows, weight, added, mean, rstd)
        ctx.shape, ctx.bias_dtype = x.shape, None if bias is None else bias.dtype
        return out.view(x.shape)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, residual, mean, rstd = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual, _ = ctx.needs_input_grad
        dx, dresidual, daffine = _backward(
            grad, x, weight, residual, mean, rstd, needs_x, needs_residual, needs_weight or needs_bias
        )
        # Where they share a gradient it is one tensor: two over one memory would be added to as if each had its own.
        of_x = dx.view(ctx.shape) if needs_x or (needs_residual and not len(dresidual)) else None
        of_residual = dresidual.view(ctx.shape) if len(dresidual) else of_x
        return (
            of_x if needs_x else None,
            daffine[0].to(weight.dtype) if needs_weight else None,
            daffine[1].to(ctx.bias_dtype) if needs_bias else None,
            of_residual if needs_residual else None,
            None,
        )


def layer_norm_triton(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, *, eps: float
) -> Tensor:
    """The kernel on the rows of ``x`` [..., D]; arguments and result as `layer_norm` has them."""
    check_dtypes("layer_norm", x=x, weight=weight, bias=bias, residual=residual)
    check_row_width("layer_norm", x.shape[-1])
    weight, bias = (None if factor is None else factor.contiguous() for factor in (weight, bias))
    out: Tensor = _LayerNorm.apply(x, weight, bias, residual, eps)
    return out
