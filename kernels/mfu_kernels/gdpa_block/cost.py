"""What one call of `gdpa_block` costs."""

from dataclasses import replace

from torch import Tensor

from mfu_kernels.cost import OpCost
from mfu_kernels.formulas import attention_cost, moved_once, needs_grad, num_bytes
from mfu_kernels.gdpa.cost import dense_kv_pairs


def gdpa_block_cost(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    activation: tuple[str, ...],
    eps: float,
    max_length: int,
    packed: Tensor | None = None,
    impl: str,
) -> OpCost:
    """The products of `gdpa`, whose queries need gradients if ``x`` does; bytes as if all of it were one kernel.

    The reference executes them for ``max_length`` events a row. The kernels take true lengths; backward, scores
    are made again for dx, and once more, with their gradient, for dk and dv, unless all gradients are made in parts.
    """
    pairs = dense_kv_pairs(offsets, k.shape[1], max_length)
    moved = moved_once((x, k, v, offsets), num_bytes(x))
    if packed is not None and needs_grad(x):  # read what x's other reader passes
        moved = replace(moved, bwd=moved.bwd + num_bytes(x))
    width, needs = x.shape[1] * x.shape[2], (needs_grad(x), needs_grad(k), needs_grad(v))
    if impl != "triton":
        return attention_cost(pairs, width, needs, moved)
    pairs = replace(pairs, hardware=pairs.model)
    from .kernel_bwd import in_parts  # which imports triton

    if all(needs) and in_parts(x, k, v):
        return attention_cost(pairs, width, needs, moved, repeated=1)
    cost = attention_cost(pairs, width, needs, moved)
    needs_x, needs_k, needs_v = needs
    for_x, for_k_and_v = 3 * needs_x, (needs_k or needs_v) + 2 * needs_k + needs_v
    executed = 2 * width * pairs.model * (for_x + for_k_and_v)
    return replace(cost, bwd=replace(cost.bwd, hardware=executed, recomputed=executed - cost.bwd.model))
