"""The public function `jagged_softmax`."""

from torch import Tensor

from mfu_kernels.checks import check_floating, check_shapes
from mfu_kernels.jagged import check_offsets
from mfu_kernels.registry import Impl, Op

from .cost import jagged_softmax_cost
from .reference import jagged_softmax_reference

OP = Op("jagged_softmax", "reduction", jagged_softmax_cost, {"reference": jagged_softmax_reference})


def jagged_softmax(scores: Tensor, offsets: Tensor, *, max_length: int | None = None, impl: Impl = "auto") -> Tensor:
    """Softmax over each row's scores: out_t = exp(scores_t) / sum over s in t's row of exp(scores_s).

    Args:
        scores: [T] packed scores of B rows.
        offsets: [B+1] int32 or int64, where each row begins and ends.
        max_length: at least the longest row's length, where it is known; the reference does without.
        impl: which implementation runs.

    Returns:
        [T] in ``scores.dtype``, computed in fp32, in fp64 for fp64 input.

    Raises:
        InvalidArgument: shapes, dtypes, devices or offsets that do not fit together.
        UnsupportedImpl: ``impl`` cannot run here.

    Source: the attention over a user's interests in DIEN, arXiv 1809.03672.
    """
    check_shapes("jagged_softmax", scores=(scores, "T"))
    check_floating("jagged_softmax", scores=scores)
    check_offsets("jagged_softmax", offsets, scores, num_rows=None, max_length=max_length)
    return OP.run(impl, scores.device, scores, offsets, max_length=max_length)
