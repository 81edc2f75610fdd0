"""The public function `gdpa`."""

from collections.abc import Sequence

from torch import Tensor

from mfu_kernels.activations import activation_per_head
from mfu_kernels.checks import check_matmul_dtypes, check_shapes
from mfu_kernels.jagged import check_offsets, host_max_length
from mfu_kernels.limits import HEAD_DIMS
from mfu_kernels.registry import Impl, Op

from .boundary import gdpa_triton
from .cost import gdpa_cost
from .reference import gdpa_reference

OP = Op(
    "gdpa",
    "attention",
    gdpa_cost,
    {"reference": gdpa_reference, "triton": gdpa_triton},
    proved_natively=True,
    widths=HEAD_DIMS,
)


def gdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    scale: float = 1.0,
    activation: str | Sequence[str] = "gelu_tanh",
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """out = act(scale q kᵀ) v, for each head and row: attention without softmax, or a two-layer MLP of n_kv hidden
    units whose weights each row brings along.

    Args:
        q: [T, H, d] packed queries of B rows.
        k, v: [B, n_kv, H, d] keys and values of each row.
        offsets: [B+1] int32 or int64, where each row begins and ends in ``q``.
        scale: multiplies the scores inside the activation.
        activation: a name in `ACTIVATIONS`, or one name for each head.
        max_length: at least the longest row's length; None reads it from ``offsets``, which waits for the device.
        impl: which implementation runs.

    Returns:
        [T, H, d], in the dtype that a matmul of ``q`` has.

    Raises:
        InvalidArgument: shapes, dtypes, devices, offsets or activation that do not fit together.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: GDPA of Kunlun, arXiv 2602.10016, with its block as Meta's norm-fusion and GDPA posts on pytorch.org
    describe it: no softmax, and no projection of queries or output.
    """
    sizes = check_shapes("gdpa", q=(q, "T H d"), k=(k, "B n_kv H d"), v=(v, "B n_kv H d"))
    check_matmul_dtypes("gdpa", q=q, k=k, v=v)
    check_offsets("gdpa", offsets, q, num_rows=sizes["B"], max_length=max_length)
    names = activation_per_head("gdpa", activation, sizes["H"])
    max_length = host_max_length(offsets, max_length)
    return OP.run(impl, q.device, q, k, v, offsets, scale=scale, activation=names, max_length=max_length)
