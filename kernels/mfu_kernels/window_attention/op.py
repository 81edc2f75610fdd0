"""The public function `window_attention`."""

from torch import Tensor

from mfu_kernels.checks import check_floating, check_matmul_dtypes, check_shapes, invalid
from mfu_kernels.jagged import check_offsets, host_max_length
from mfu_kernels.limits import HEAD_DIMS
from mfu_kernels.registry import Impl, Op
from mfu_kernels.rotary_time.op import check_angles

from .boundary import window_attention_triton
from .cost import window_attention_cost
from .reference import window_attention_reference

OP = Op(
    "window_attention",
    "attention",
    window_attention_cost,
    {"reference": window_attention_reference, "triton": window_attention_triton},
    proved_natively=True,
    widths=HEAD_DIMS,
)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    window: int | None,
    causal: bool = False,
    scale: float | None = None,
    angles: Tensor | None = None,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Softmax self-attention within each row: query i sees the keys j with |i - j| <= window.

    Args:
        q, k, v: [T, H, d] packed queries, keys and values of B rows.
        offsets: [B+1] int32 or int64, where each row begins and ends.
        window: farthest neighbour that is seen, at least 0; None sees the whole row.
        causal: see no key ahead of the query.
        scale: multiplies the scores; None means 1 / sqrt(d).
        angles: [T, d/2] in radians, by which q and k are rotated first, as `rotary_time` does.
        max_length: at least the longest row's length; None reads it from ``offsets``, which waits for the device.
        impl: which implementation runs.

    Returns:
        [T, H, d], in the dtype that a matmul of ``q`` has.

    Raises:
        InvalidArgument: shapes, dtypes, devices, offsets or window that do not fit together; odd d with ``angles``.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the sliding-window attention of Kunlun, arXiv 2602.10016, which looks both ways over an event sequence.
    """
    check_shapes("window_attention", q=(q, "T H d"), k=(k, "T H d"), v=(v, "T H d"))
    check_matmul_dtypes("window_attention", q=q, k=k, v=v)
    return _run((q, k, v), None, offsets, angles, window, causal, scale, max_length, impl)


def window_attention_qkvpacked(
    qkv: Tensor,
    offsets: Tensor,
    *,
    window: int | None,
    causal: bool = False,
    scale: float | None = None,
    angles: Tensor | None = None,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """`window_attention` of the three slices of ``qkv``, such as a fused projection gives.

    The kernels write the gradient of ``qkv`` as one tensor, where autograd would lay those of q, k and v side by side
    in another pass.

    Args:
        qkv: [T, 3, H, d] packed queries, keys and values of B rows.
        offsets, window, causal, scale, angles, max_length, impl: as `window_attention` has them.

    Returns:
        [T, H, d], in the dtype that a matmul of ``qkv`` has.

    Raises:
        InvalidArgument, UnsupportedImpl: where `window_attention` does.
    """
    check_shapes("window_attention", qkv=(qkv, "T 3 H d"))
    check_floating("window_attention", qkv=qkv)
    q, k, v = qkv.unbind(1)
    return _run((q, k, v), qkv, offsets, angles, window, causal, scale, max_length, impl)


def _run(
    separate: tuple[Tensor, Tensor, Tensor],
    packed: Tensor | None,
    offsets: Tensor,
    angles: Tensor | None,
    window: int | None,
    causal: bool,
    scale: float | None,
    max_length: int | None,
    impl: Impl,
) -> Tensor:
    q = separate[0]
    check_offsets("window_attention", offsets, q, num_rows=None, max_length=max_length)
    if window is not None and window < 0:
        raise invalid("window_attention", "window", window, "None or an integer of at least 0")
    if angles is not None:
        check_angles("window_attention", q, angles)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    mask = {"window": window, "causal": causal, "max_length": host_max_length(offsets, max_length)}
    return OP.run(impl, q.device, *separate, offsets, angles, scale=scale, packed=packed, **mask)
