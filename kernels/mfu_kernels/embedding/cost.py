"""What one call of `embedding` costs."""

from collections.abc import Sequence

from torch import Tensor

from mfu_kernels.cost import OpCost, PassCost
from mfu_kernels.formulas import needs_grad, num_bytes


def embedding_cost(weight: Tensor, ids: Tensor, offsets: Tensor, *, vocabs: Sequence[int] | None, impl: str) -> OpCost:
    """Bytes only: of the table no more is read than a row for each id; its gradient is dense and is written whole."""
    looked_up = ids.numel() * weight.shape[1] * weight.element_size()
    forward = num_bytes(ids, offsets) + min(num_bytes(weight), looked_up) + looked_up
    backward = num_bytes(ids, offsets) + looked_up + num_bytes(weight) if needs_grad(weight) else 0
    return OpCost(PassCost(bytes=forward), PassCost(bytes=backward))
