"""The public function `jagged_linear`."""

from torch import Tensor

from mfu_kernels.checks import check_matmul_dtypes, check_shapes
from mfu_kernels.jagged import check_offsets, host_max_length
from mfu_kernels.registry import Impl, Op

from .cost import jagged_linear_cost
from .reference import jagged_linear_reference

OP = Op("jagged_linear", "gemm", jagged_linear_cost, {"reference": jagged_linear_reference})


def jagged_linear(
    x: Tensor, weight: Tensor, offsets: Tensor, *, max_length: int | None = None, impl: Impl = "auto"
) -> Tensor:
    """Each row's values through that row's own matrix: out_t = x_t weight_b for t in row b.

    Args:
        x: [T, D] packed values of B rows.
        weight: [B, D, E], one matrix a row.
        offsets: [B+1] int32 or int64, where each row begins and ends.
        max_length: at least the longest row's length; None reads it from ``offsets``, which waits for the device.
        impl: which implementation runs.

    Returns:
        [T, E], in the dtype that a matmul of ``x`` has.

    Raises:
        InvalidArgument: shapes, dtypes, devices or offsets that do not fit together.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the personalised feed-forward (PFFN) of InterFormer, arXiv 2411.09852, whose weight is made from a summary
    of the sample's context.
    """
    sizes = check_shapes("jagged_linear", x=(x, "T D"), weight=(weight, "B D E"))
    check_matmul_dtypes("jagged_linear", x=x, weight=weight)
    check_offsets("jagged_linear", offsets, x, num_rows=sizes["B"], max_length=max_length)
    return OP.run(impl, x.device, x, weight, offsets, max_length=host_max_length(offsets, max_length))
