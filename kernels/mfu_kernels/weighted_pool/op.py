"""The public function `weighted_pool`."""

from torch import Tensor

from mfu_kernels.checks import check_matmul_dtypes, check_shapes
from mfu_kernels.jagged import check_offsets, host_max_length
from mfu_kernels.registry import Impl, Op

from .cost import weighted_pool_cost
from .reference import weighted_pool_reference

OP = Op("weighted_pool", "attention", weighted_pool_cost, {"reference": weighted_pool_reference})


def weighted_pool(
    values: Tensor, weights: Tensor, offsets: Tensor, *, max_length: int | None = None, impl: Impl = "auto"
) -> Tensor:
    """Weighted sum of each row's values: out_b = sum over t in row b of weights_t values_t.

    Args:
        values: [T, D] packed values of B rows.
        weights: [T], one a value, of any sign and any sum.
        offsets: [B+1] int32 or int64, where each row begins and ends.
        max_length: at least the longest row's length; None reads it from ``offsets``, which waits for the device.
        impl: which implementation runs.

    Returns:
        [B, D], in the dtype that a matmul of ``values`` has; an empty row gives zeros.

    Raises:
        InvalidArgument: shapes, dtypes, devices or offsets that do not fit together.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the pooling of DIN, arXiv 1706.06978, by weights that a network gives each event against the candidate.
    """
    check_shapes("weighted_pool", values=(values, "T D"), weights=(weights, "T"))
    check_matmul_dtypes("weighted_pool", values=values, weights=weights)
    check_offsets("weighted_pool", offsets, values, num_rows=None, max_length=max_length)
    return OP.run(impl, values.device, values, weights, offsets, max_length=host_max_length(offsets, max_length))
