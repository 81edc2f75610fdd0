"""The public function `layer_norm`."""

from torch import Tensor

from mfu_kernels.checks import check_norm
from mfu_kernels.registry import Impl, Op

from .boundary import layer_norm_triton
from .cost import layer_norm_cost
from .reference import layer_norm_reference

OP = Op(
    "layer_norm",
    "norm",
    layer_norm_cost,
    {"reference": layer_norm_reference, "triton": layer_norm_triton},
    proved_natively=True,
)


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    impl: Impl = "auto",
) -> Tensor:
    """out = (y - mean(y)) / sqrt(var(y) + eps) * weight + bias over the last dimension, with y = x + residual.

    Args:
        x: [..., D] of any floating-point dtype.
        weight, bias: [D] of any floating-point dtype, or None for ones and zeros.
        residual: [..., D] as ``x``, of any floating-point dtype, or None.
        eps: above 0.
        impl: which implementation runs.

    Returns:
        [..., D] in ``x.dtype``; the sum and the statistics are in fp32, in fp64 for fp64 input.

    Raises:
        InvalidArgument: shapes, dtypes, devices or eps that are not allowed.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: Ba, Kiros and Hinton, arXiv 1607.06450.
    """
    check_norm("layer_norm", x, eps, residual=residual, weight=weight, bias=bias)
    return OP.run(impl, x.device, x, weight, bias, residual, eps=eps)
