"""The public function `rms_norm`."""

from torch import Tensor

from mfu_kernels.checks import check_norm
from mfu_kernels.registry import Impl, Op

from .boundary import rms_norm_triton
from .cost import rms_norm_cost
from .reference import rms_norm_reference

OP = Op(
    "rms_norm",
    "norm",
    rms_norm_cost,
    {"reference": rms_norm_reference, "triton": rms_norm_triton},
    proved_natively=True,
)


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6, impl: Impl = "auto") -> Tensor:
    """out = x / sqrt(mean(x²) + eps) * weight over the last dimension.

    Args:
        x: [..., D] of any floating-point dtype.
        weight: [D] of any floating-point dtype, or None for ones.
        eps: above 0.
        impl: which implementation runs.

    Returns:
        [..., D] in ``x.dtype``; statistics are in fp32, in fp64 for fp64 input.

    Raises:
        InvalidArgument: shapes, dtypes, devices or eps that are not allowed.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: Zhang and Sennrich, arXiv 1910.07467.
    """
    check_norm("rms_norm", x, eps, weight=weight)
    return OP.run(impl, x.device, x, weight, eps=eps)
