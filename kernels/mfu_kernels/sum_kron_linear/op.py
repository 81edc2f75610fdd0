"""The public function `sum_kron_linear`."""

from torch import Tensor

from mfu_kernels.checks import check_matmul_dtypes, check_shapes
from mfu_kernels.registry import Impl, Op

from .boundary import sum_kron_linear_triton
from .cost import sum_kron_linear_cost
from .reference import sum_kron_linear_reference

OP = Op(
    "sum_kron_linear",
    "gemm",
    sum_kron_linear_cost,
    {"reference": sum_kron_linear_reference, "triton": sum_kron_linear_triton},
    proved_natively=True,
)


def sum_kron_linear(x: Tensor, z: Tensor, w: Tensor, *, impl: Impl = "auto") -> Tensor:
    """out = sum over r of z_rᵀ x w_r: turns S tokens into M with few weights, mixing tokens, then features.

    Args:
        x: [B, S, D] tokens.
        z: [R, S, M] token mixing of each of R terms.
        w: [R, D, E] feature mixing of each term.
        impl: which implementation runs.

    Returns:
        [B, M, E], in the dtype that a matmul of ``x`` has.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit together.
        UnsupportedImpl: ``impl`` cannot run here.

    With ``impl="triton"`` the forward is one kernel for 16-bit dtypes, S <= 256, M <= 128, and E <= 256 or little more
    (`fusion.fuses` has the rule), else two matmuls; the backward is matmuls.

    Source: SumKronLinear, the second step of hierarchical seed pooling in Kunlun, arXiv 2602.10016.
    """
    check_shapes("sum_kron_linear", x=(x, "B S D"), z=(z, "R S M"), w=(w, "R D E"))
    check_matmul_dtypes("sum_kron_linear", x=x, z=z, w=w)
    return OP.run(impl, x.device, x, z, w)
