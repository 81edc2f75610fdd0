"""The public function `hstu_attention`."""

from torch import Tensor

from mfu_kernels.checks import check_floating, check_matmul_dtypes, check_shapes, invalid
from mfu_kernels.jagged import check_offsets, host_max_length
from mfu_kernels.limits import HEAD_DIMS
from mfu_kernels.registry import Impl, Op

from .boundary import hstu_attention_triton
from .cost import hstu_attention_cost
from .reference import hstu_attention_reference

OP = Op(
    "hstu_attention",
    "attention",
    hstu_attention_cost,
    {"reference": hstu_attention_reference, "triton": hstu_attention_triton},
    proved_natively=True,
    widths=HEAD_DIMS,
)


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: Tensor | None = None,
    *,
    norm_length: int,
    alpha: float | None = None,
    window: int | None = None,
    first_keys: int = 0,
    num_candidates: int = 1,
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """SiLU(alpha q kᵀ + bias) v / N within each row, over the keys behind each query and its own.

    The last ``num_candidates`` tokens of a row are candidates: each sees the history before them and itself, never
    another candidate, and all of them stand at the position that follows the history.

    Args:
        q, k: [T, H, d] packed queries and keys of B rows.
        v: [T, H, d_v] packed values.
        offsets: [B+1] int32 or int64, where each row begins and ends.
        bias: [H, R] added to the scores by how far a key lies behind its query, the last entry from R - 1 on; or None.
        norm_length: N, at least 1: a fixed length, not the batch's, so that no row's result depends on another row.
        alpha: multiplies q kᵀ inside the activation; None means 1 / sqrt(d).
        window: farthest key behind a query that is seen, at least 0; None sees all of them.
        first_keys: how many keys at the start of the row are seen besides those in the window.
        num_candidates: at least 1; with 1 the mask is the causal one. A row of fewer tokens holds candidates only.
        max_length: at least the longest row's length; None reads it from ``offsets``, which waits for the device.
        impl: which implementation runs.

    Returns:
        [T, H, d_v], in the dtype that a matmul of ``q`` has.

    Raises:
        InvalidArgument: shapes, dtypes, devices, offsets or numbers that do not fit together.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: HSTU, arXiv 2402.17152, with the candidates' mask and the window of its public code; the first keys beside
    the window are the semi-local attention of ULTRA-HSTU, arXiv 2602.16986.
    """
    shapes = {"q": (q, "T H d"), "k": (k, "T H d"), "v": (v, "T H d_v")}
    sizes = check_shapes("hstu_attention", **shapes, **({} if bias is None else {"bias": (bias, "H R")}))
    check_matmul_dtypes("hstu_attention", q=q, k=k, v=v)
    check_floating("hstu_attention", bias=bias)
    check_offsets("hstu_attention", offsets, q, num_rows=None, max_length=max_length)
    if window is not None and window < 0:
        raise invalid("hstu_attention", "window", window, "None or an integer of at least 0")
    for name, value, least in (
        ("norm_length", norm_length, 1),
        ("first_keys", first_keys, 0),
        ("num_candidates", num_candidates, 1),
    ):
        if value < least:
            raise invalid("hstu_attention", name, value, f"an integer of at least {least}")
    return OP.run(
        impl,
        q.device,
        *(q, k, v, offsets, bias),
        norm_length=norm_length,
        alpha=sizes["d"] ** -0.5 if alpha is None else alpha,
        window=window,
        first_keys=first_keys,
        num_candidates=num_candidates,
        max_length=host_max_length(offsets, max_length),
    )
