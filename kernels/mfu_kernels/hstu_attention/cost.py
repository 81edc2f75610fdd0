"""What one call of `hstu_attention` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost, PassCost
from mfu_kernels.formulas import Pairs, matmul_bytes, moved_once, needs_grad
from mfu_kernels.jagged import row_lengths
from mfu_kernels.window_attention.cost import kept_pairs as kept_in_window


def _causal_pairs(length: int, window: int | None, first_keys: int) -> int:
    """Pairs of a row without candidates: those in the window, and those with the first keys behind it.

    The query at position p has p - w keys behind a window of reach w: as many as a causal row of ``length`` - w - 1
    tokens has at and before its position p - w - 1, of which the first ``first_keys`` count.
    """
    near = kept_in_window(length, window, causal=True)
    if window is None or not first_keys:
        return near
    return near + kept_in_window(max(0, length - window - 1), first_keys - 1, causal=True)


def kept_pairs(length: int, window: int | None = None, first_keys: int = 0, num_candidates: int = 1) -> int:
    """Query-key pairs that the mask keeps in one row, exactly: each candidate keeps what one after the history does."""
    candidates = min(num_candidates, length)
    history = _causal_pairs(length - candidates, window, first_keys)
    with_one = _causal_pairs(length - candidates + 1, window, first_keys)
    return history + candidates * (with_one - history)


def hstu_attention_cost(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    *,
    norm_length: int,
    alpha: float,
    window: int | None,
    first_keys: int,
    num_candidates: int,
    max_length: int,
    impl: str,
) -> OpCost:
    """2 H d FLOPs a kept pair for its score, 2 H d_v for its value; the reference executes ``max_length``² pairs a row.

    Backward: dV and the weights' gradient, of d_v a pair each, then dQ and dK, of d each, as far as they are needed.
    The kernels for dQ, for dK and dV, and for the bias make scores and the weights' gradient anew, each what it needs.
    """
    lengths = row_lengths(offsets)
    pairs = Pairs(
        model=sum(kept_pairs(length, window, first_keys, num_candidates) for length in lengths),
        padded=len(lengths) * kept_pairs(max(lengths), window, first_keys, num_candidates),
        hardware=len(lengths) * max_length**2,
    ).run_by(impl)
    moved = moved_once((q, k, v, offsets, bias), matmul_bytes(v.numel(), q))
    score, value = 2 * q.shape[1] * q.shape[2], 2 * v.shape[1] * v.shape[2]
    weights = needs_grad(q, k, bias)

    def products(flops: int, bytes_moved: int, executed: int) -> PassCost:
        again = (executed - flops) * pairs.hardware
        return PassCost(
            flops * pairs.model, flops * pairs.padded, executed * pairs.hardware, bytes_moved, recomputed=again
        )

    needs_q, needs_k, needs_v, needs_bias = (needs_grad(tensor) for tensor in (q, k, v, bias))
    bwd = value * (needs_v + weights) + score * (needs_q + needs_k)
    by_kernels = (
        needs_q * (2 * score + value)
        + (needs_k or needs_v) * (score + needs_v * value + needs_k * (value + score))
        + needs_bias * (score + value)
    )
    executed = bwd if impl == "reference" else by_kernels
    return OpCost(products(score + value, moved.fwd, score + value), products(bwd, moved.bwd, executed))
