"""What one call of `seed_pooling_absorbed` costs."""

from dataclasses import replace

from torch import Tensor

from mfu_kernels.cost import OpCost, PassCost
from mfu_kernels.formulas import Pairs, attention_cost, matmul_bytes, moved_once, needs_grad
from mfu_kernels.jagged import row_lengths

from .boundary import value_parts


def seed_pooling_absorbed_cost(
    seeds: Tensor, x: Tensor, w_k: Tensor, w_v: Tensor, offsets: Tensor, *, scale: float, max_length: int, impl: str
) -> OpCost:
    """Two products of 2 H D FLOPs a seed and event, and two small projections of each row: queries' and outputs'.

    Queries are projected once for all rows, which each row alone would pay for. A kernel makes the scores for each part
    of wide values, and in its backward again; the reference executes ``max_length`` events a row.
    """
    lengths = row_lengths(offsets)
    num_rows, width = len(lengths), w_k.shape[0] * x.shape[1]
    events = (sum(lengths), num_rows * max(lengths), num_rows * max_length)
    pairs = Pairs(*(seeds.shape[0] * n for n in events)).run_by(impl)
    moved = moved_once((seeds, x, w_k, w_v, offsets), matmul_bytes(num_rows * seeds.numel(), seeds))
    queries, pooled = needs_grad(seeds, w_k), needs_grad(seeds, w_k, x)
    attention = attention_cost(
        pairs, width, (queries, needs_grad(x), needs_grad(x)), moved, repeated=int(impl == "triton")
    )
    again = 2 * width * pairs.hardware * (value_parts(x.shape[1]) - 1) if impl == "triton" else 0
    one = 2 * seeds.numel() * x.shape[1]  # a projection of one row
    return OpCost(
        _more(attention.fwd, one, num_rows, 1, 1, again),
        _more(attention.bwd, one, num_rows, needs_grad(seeds) + needs_grad(w_k), pooled + needs_grad(w_v)),
    )


def _more(cost: PassCost, one: int, num_rows: int, of_queries: int, of_outputs: int, again: int = 0) -> PassCost:
    """``cost`` with projections of so many FLOPs ``one`` for a row, and scores made ``again``."""
    each = one * num_rows * (of_queries + of_outputs)
    executed = one * (of_queries + num_rows * of_outputs) + again
    return replace(
        cost,
        model=cost.model + each,
        padded=cost.padded + each,
        hardware=cost.hardware + executed,
        recomputed=cost.recomputed + again,
    )
