"""What one call of `jagged_gru` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost, PassCost
from mfu_kernels.formulas import matmul_bytes, moved_once, needs_grad
from mfu_kernels.jagged import row_lengths


def jagged_gru_cost(
    gates: Tensor, weight: Tensor, offsets: Tensor, attention: Tensor | None, *, max_length: int, impl: str
) -> OpCost:
    """One product of 6 h² FLOPs a step, and one for each gradient; no row's first state, which is 0, needs one."""
    lengths = row_lengths(offsets)
    num_rows = len(lengths)
    model = (sum(lengths), sum(length > 0 for length in lengths))  # steps, and rows that begin
    padded = (num_rows * max(lengths), num_rows * (max(lengths) > 0))
    hardware = (num_rows * max_length, num_rows * (max_length > 0))
    moved = moved_once((gates, weight, offsets, attention), matmul_bytes(gates.shape[0] * weight.shape[0], gates))
    product = 2 * weight.numel()
    of_weight, of_state = needs_grad(weight), needs_grad(gates, weight, attention)

    def bwd(steps: int, begins: int) -> int:
        return product * (of_weight * steps + of_state * (steps - begins))

    return OpCost(
        PassCost(product * model[0], product * padded[0], product * hardware[0], moved.fwd),
        PassCost(bwd(*model), bwd(*padded), bwd(*hardware), moved.bwd),
    )
