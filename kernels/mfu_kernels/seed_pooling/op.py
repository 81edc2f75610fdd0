"""The public function `seed_pooling`."""

from torch import Tensor

from mfu_kernels.checks import check_matmul_dtypes, check_shapes
from mfu_kernels.jagged import check_offsets, host_max_length
from mfu_kernels.limits import HEAD_DIMS
from mfu_kernels.registry import Impl, Op
from mfu_kernels.rotary_time.op import check_angles

from .boundary import seed_pooling_triton
from .cost import seed_pooling_cost
from .reference import seed_pooling_reference

OP = Op(
    "seed_pooling",
    "attention",
    seed_pooling_cost,
    {"reference": seed_pooling_reference, "triton": seed_pooling_triton},
    proved_natively=True,
    widths=HEAD_DIMS,
)


def seed_pooling(
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    scale: float | None = None,
    angles: Tensor | None = None,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """softmax(scale seeds kᵀ) v over each row's events: S summaries of a row, however long it is.

    Args:
        seeds: [S, H, d] queries that all rows share.
        k, v: [T, H, d] packed keys and values of B rows.
        offsets: [B+1] int32 or int64, where each row begins and ends.
        scale: multiplies the scores; None means 1 / sqrt(d).
        angles: [T, d/2] in radians, by which k is rotated first, as `rotary_time` does.
        max_length: at least the longest row's length; None reads it from ``offsets``, which waits for the device.
        impl: which implementation runs.

    Returns:
        [B, S, H, d], in the dtype that a matmul of ``seeds`` has; an empty row gives zeros.

    Raises:
        InvalidArgument: shapes, dtypes, devices or offsets that do not fit together; odd d with ``angles``.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the first step of hierarchical seed pooling in Kunlun, arXiv 2602.10016; the same form as the pooling by
    multi-head attention of Set Transformer, arXiv 1810.00825.
    """
    check_shapes("seed_pooling", seeds=(seeds, "S H d"), k=(k, "T H d"), v=(v, "T H d"))
    check_matmul_dtypes("seed_pooling", seeds=seeds, k=k, v=v)
    return _run(seeds, (k, v), None, offsets, angles, scale, max_length, impl)


def seed_pooling_kvpacked(
    seeds: Tensor,
    kv: Tensor,
    offsets: Tensor,
    *,
    scale: float | None = None,
    angles: Tensor | None = None,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """`seed_pooling` of the two slices of ``kv``, such as a fused projection gives.

    The kernels write the gradient of ``kv`` as one tensor, where autograd would lay those of k and v side by side in
    another pass.

    Args:
        kv: [T, 2, H, d] packed keys and values of B rows.
        seeds, offsets, scale, angles, max_length, impl: as `seed_pooling` has them.

    Returns:
        [B, S, H, d], in the dtype that a matmul of ``seeds`` has; an empty row gives zeros.

    Raises:
        InvalidArgument, UnsupportedImpl: where `seed_pooling` does.
    """
    check_shapes("seed_pooling", seeds=(seeds, "S H d"), kv=(kv, "T 2 H d"))
    check_matmul_dtypes("seed_pooling", seeds=seeds, kv=kv)
    k, v = kv.unbind(1)
    return _run(seeds, (k, v), kv, offsets, angles, scale, max_length, impl)


def _run(
    seeds: Tensor,
    separate: tuple[Tensor, Tensor],
    packed: Tensor | None,
    offsets: Tensor,
    angles: Tensor | None,
    scale: float | None,
    max_length: int | None,
    impl: Impl,
) -> Tensor:
    k = separate[0]
    check_offsets("seed_pooling", offsets, k, num_rows=None, max_length=max_length)
    if angles is not None:
        check_angles("seed_pooling", k, angles)
    scale = seeds.shape[2] ** -0.5 if scale is None else scale
    max_length = host_max_length(offsets, max_length)
    return OP.run(impl, k.device, seeds, *separate, offsets, angles, scale=scale, max_length=max_length, packed=packed)
