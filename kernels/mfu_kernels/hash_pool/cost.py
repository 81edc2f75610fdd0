"""What one call of `hash_pool` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import moved_once, without_matmul


def hash_pool_cost(
    values: Tensor,
    hashes: Tensor,
    query_hashes: Tensor,
    offsets: Tensor,
    *,
    bits: int,
    max_length: int | None,
    impl: str,
) -> OpCost:
    """Bytes only: the sums are additions, G D of them a value at most, and multiply nothing.

    Backward does not read the values again, and hashes have no gradient.
    """
    groups = hashes.shape[1] // bits
    output_bytes = query_hashes.shape[0] * groups * values.shape[1] * values.element_size()
    constants = (hashes.detach(), query_hashes.detach(), offsets)
    return without_matmul(moved_once((values, *constants), output_bytes, saved=constants))
