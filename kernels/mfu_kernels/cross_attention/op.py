"""The public function `cross_attention`."""

from torch import Tensor

from mfu_kernels.checks import check_matmul_dtypes, check_shapes, invalid
from mfu_kernels.jagged import check_offsets, host_max_length
from mfu_kernels.registry import Impl, Op

from .cost import cross_attention_cost
from .reference import cross_attention_reference

OP = Op("cross_attention", "attention", cross_attention_cost, {"reference": cross_attention_reference})


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    own_k: Tensor | None = None,
    own_v: Tensor | None = None,
    *,
    scale: float | None = None,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """softmax(scale q kᵀ) v: each row's M queries over its events, and over a key of their own if they have one.

    No query sees another's key, so that M candidates share one history and are scored as if each were alone.

    Args:
        q: [B, M, H, d] queries of each row.
        k, v: [T, H, d] packed keys and values of B rows.
        offsets: [B+1] int32 or int64, where each row begins and ends in ``k``.
        own_k, own_v: [B, M, H, d] a key and value for each query alone, or neither.
        scale: multiplies the scores; None means 1 / sqrt(d).
        max_length: at least the longest row's length; None reads it from ``offsets``, which waits for the device.
        impl: which implementation runs.

    Returns:
        [B, M, H, d], in the dtype that a matmul of ``q`` has; an empty row gives each query its own value, else zeros.

    Raises:
        InvalidArgument: shapes, dtypes, devices or offsets that do not fit together; one of ``own_k`` and ``own_v``.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the append and cross-attention form of LinkedIn's history modelling, arXiv 2412.06924, without own keys; the
    candidates' half of LiGR, arXiv 2502.03417, with them.
    """
    if (own_k is None) != (own_v is None):
        missing = "own_k" if own_k is None else "own_v"
        raise invalid("cross_attention", missing, "missing", "both own_k and own_v, or neither")
    own = {} if own_k is None or own_v is None else {"own_k": own_k, "own_v": own_v}
    dense, packed = {"q": q} | own, {"k": k, "v": v}
    sizes = check_shapes(
        "cross_attention",
        **{name: (tensor, "B M H d") for name, tensor in dense.items()},
        **{name: (tensor, "T H d") for name, tensor in packed.items()},
    )
    check_matmul_dtypes("cross_attention", **dense, **packed)
    check_offsets("cross_attention", offsets, k, num_rows=sizes["B"], max_length=max_length)
    scale = sizes["d"] ** -0.5 if scale is None else scale
    max_length = host_max_length(offsets, max_length)
    return OP.run(impl, q.device, q, k, v, offsets, own_k, own_v, scale=scale, max_length=max_length)
