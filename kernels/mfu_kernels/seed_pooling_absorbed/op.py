"""The public function `seed_pooling_absorbed`."""

from torch import Tensor

from mfu_kernels.checks import check_matmul_dtypes, check_shapes, invalid
from mfu_kernels.jagged import check_offsets, host_max_length
from mfu_kernels.registry import Impl, Op

from .boundary import MAX_WIDTH, seed_pooling_absorbed_triton
from .cost import seed_pooling_absorbed_cost
from .reference import seed_pooling_absorbed_reference

OP = Op(
    "seed_pooling_absorbed",
    "attention",
    seed_pooling_absorbed_cost,
    {"reference": seed_pooling_absorbed_reference, "triton": seed_pooling_absorbed_triton},
    proved_natively=True,
    widths=(1, MAX_WIDTH),
)


def seed_pooling_absorbed(
    seeds: Tensor,
    x: Tensor,
    w_k: Tensor,
    w_v: Tensor,
    offsets: Tensor,
    *,
    scale: float | None = None,
    angles: Tensor | None = None,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """`seed_pooling` of the keys x w_kᵀ and values x w_vᵀ, which are never made.

    Seeds are projected in place of events, q' = seeds w_k, and so is what they pool: (softmax(scale q' xᵀ) x) w_vᵀ.
    That is fewer FLOPs, and far fewer bytes, where S < D / (H - 1) with D = H d.

    Args:
        seeds: [S, H, d] queries that all rows share.
        x: [T, D] packed events of B rows.
        w_k, w_v: [H, d, D] projections, as the weight of a linear layer holds them.
        offsets: [B+1] int32 or int64, where each row begins and ends.
        scale: multiplies the scores; None means 1 / sqrt(d).
        angles: must be None: keys that are never made cannot be rotated.
        max_length: at least the longest row's length; None reads it from ``offsets``, which waits for the device.
        impl: which implementation runs.

    Returns:
        [B, S, H, d], in the dtype that a matmul of ``seeds`` has; an empty row gives zeros.

    Raises:
        InvalidArgument: shapes, dtypes, devices or offsets that do not fit together; ``angles``.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: as `seed_pooling`; the order of the products is that of Multi-head Latent Attention, DeepSeek-V2, arXiv
    2405.04434, section 2.1.2.
    """
    if angles is not None:
        allowed = "None: keys that are never made cannot be rotated; project x and use seed_pooling(..., angles=)"
        raise invalid("seed_pooling_absorbed", "angles", "given", allowed)
    check_shapes(
        "seed_pooling_absorbed",
        x=(x, "T D"),
        seeds=(seeds, "S H d"),
        w_k=(w_k, "H d D"),
        w_v=(w_v, "H d D"),
    )
    check_matmul_dtypes("seed_pooling_absorbed", x=x, seeds=seeds, w_k=w_k, w_v=w_v)
    check_offsets("seed_pooling_absorbed", offsets, x, num_rows=None, max_length=max_length)
    scale = seeds.shape[2] ** -0.5 if scale is None else scale
    max_length = host_max_length(offsets, max_length)
    return OP.run(impl, x.device, seeds, x, w_k, w_v, offsets, scale=scale, max_length=max_length)
