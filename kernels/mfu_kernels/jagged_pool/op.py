"""The public function `jagged_pool`."""

from typing import Literal

from torch import Tensor

from mfu_kernels.checks import check_floating, check_shapes, invalid
from mfu_kernels.jagged import check_offsets
from mfu_kernels.registry import Impl, Op

from .cost import jagged_pool_cost
from .reference import jagged_pool_reference

OP = Op("jagged_pool", "reduction", jagged_pool_cost, {"reference": jagged_pool_reference})


def jagged_pool(
    values: Tensor,
    offsets: Tensor,
    *,
    mode: Literal["mean", "sum"] = "mean",
    max_length: int | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Mean or sum of each row's values.

    Args:
        values: [T, D] packed values of B rows.
        offsets: [B+1] int32 or int64, where each row begins and ends.
        mode: "mean" or "sum".
        max_length: at least the longest row's length, where it is known; the reference does without.
        impl: which implementation runs.

    Returns:
        [B, D] in ``values.dtype``, summed in fp32, in fp64 for fp64 input; an empty row gives zeros.

    Raises:
        InvalidArgument: shapes, dtypes, devices, offsets or mode that are not allowed.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the pooled multi-hot features of DLRM, arXiv 1906.00091, over a row's events.
    """
    check_shapes("jagged_pool", values=(values, "T D"))
    check_floating("jagged_pool", values=values)
    check_offsets("jagged_pool", offsets, values, num_rows=None, max_length=max_length)
    if mode not in ("mean", "sum"):
        raise invalid("jagged_pool", "mode", repr(mode), "'mean', 'sum'")
    return OP.run(impl, values.device, values, offsets, mode=mode, max_length=max_length)
