"""What one call of `window_attention` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import Pairs, attention_cost, matmul_bytes, moved_once, needs_grad
from mfu_kernels.jagged import row_lengths


def kept_pairs(length: int, window: int | None, causal: bool) -> int:
    """Query-key pairs that the mask keeps in one row, exactly.

    With w = the farthest neighbour in reach, a query sees w keys behind it, itself, and w ahead unless causal; the
    first w queries, and the last w unless causal, miss w (w + 1) / 2 keys that lie outside the row.
    """
    reach = length - 1 if window is None else min(window, length - 1)
    missing = reach * (reach + 1) // 2
    return length * (reach + 1) - missing if causal else length * (2 * reach + 1) - 2 * missing


def window_attention_cost(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    angles: Tensor | None,
    *,
    window: int | None,
    causal: bool,
    scale: float,
    max_length: int,
    packed: Tensor | None = None,
    impl: str,
) -> OpCost:
    """Two products of 2 H d FLOPs a kept pair; the reference executes all ``max_length``² pairs of each row.

    The kernels' backward makes the scores and the weights' gradient once for queries and once for keys, unless it walks
    along rows, which Hopper's does.
    """
    lengths = row_lengths(offsets)
    pairs = Pairs(
        model=sum(kept_pairs(length, window, causal) for length in lengths),
        padded=len(lengths) * kept_pairs(max(lengths), window, causal),
        hardware=len(lengths) * max_length**2,
    ).run_by(impl)
    moved = moved_once((q, k, v, offsets, angles), matmul_bytes(q.numel(), q))
    # Gradients of the angles pass through the rotated queries and keys.
    needs = (needs_grad(q, angles), needs_grad(k, angles), needs_grad(v))
    repeated = 0
    if impl == "triton":
        from .kernel_bwd import repeated_products  # which imports triton

        repeated = repeated_products(q, k, v, window, causal, max_length, needs)
    return attention_cost(pairs, q.shape[1] * q.shape[2], needs, moved, repeated=repeated)
