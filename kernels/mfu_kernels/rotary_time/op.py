"""The public functions `rotary_time` and `rotary_angles`."""

import torch
from torch import Tensor

from mfu_kernels.checks import check_floating, check_shapes, invalid
from mfu_kernels.limits import HEAD_DIMS
from mfu_kernels.registry import Impl, Op

from .boundary import rotary_time_triton
from .cost import rotary_time_cost
from .reference import rotary_time_reference

OP = Op(
    "rotary_time",
    "elementwise",
    rotary_time_cost,
    {"reference": rotary_time_reference, "triton": rotary_time_triton},
    proved_natively=True,
    widths=HEAD_DIMS,
)


def rotary_angles(positions: Tensor, log_gaps: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
    """angles = pos θ + τ φ: how far each event's feature pairs turn, by its position and by its time.

    Args:
        positions: [T] place of each event in its row.
        log_gaps: [T] τ = log(1 + Δt / t_scale), without unit, of each event's time gap.
        theta, phi: [d/2] radians by which each pair turns for one position and for one unit of τ.

    Returns:
        [T, d/2] in radians.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit together.

    Source: the rotary temporal embedding (ROTE) of Kunlun, arXiv 2602.10016.
    """
    check_shapes(
        "rotary_angles",
        positions=(positions, "T"),
        log_gaps=(log_gaps, "T"),
        theta=(theta, "d/2"),
        phi=(phi, "d/2"),
    )
    check_floating("rotary_angles", log_gaps=log_gaps, theta=theta, phi=phi)
    return torch.addcmul(log_gaps[:, None] * phi, positions.to(theta.dtype)[:, None], theta)


def check_angles(op: str, x: Tensor, angles: Tensor) -> None:
    """``angles`` [T, d/2] fit to ``x`` [T, H, d], whose d is even."""
    sizes = check_shapes(op, x=(x, "T H d"), angles=(angles, "T d/2"))
    check_floating(op, angles=angles)
    if 2 * sizes["d/2"] != sizes["d"]:
        shape = f"of shape {list(angles.shape)} with d = {sizes['d']}"
        raise invalid(op, "angles", shape, "[T, d/2] with d even")


def rotary_time(x: Tensor, angles: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Rotate each pair (x_k, x_{k+d/2}) by angle k, so that a product of two events depends on their differences.

    Args:
        x: [T, H, d] packed queries or keys, d even.
        angles: [T, d/2] in radians, the same for all heads; see `rotary_angles`.
        impl: which implementation runs.

    Returns:
        [T, H, d] in ``x.dtype``; computed in fp32, in fp64 for fp64 input.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit together; odd d.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: ROTE of Kunlun, arXiv 2602.10016; the rotation is that of RoFormer, arXiv 2104.09864.
    """
    check_angles("rotary_time", x, angles)
    check_floating("rotary_time", x=x)
    return OP.run(impl, x.device, x, angles)
