"""`seed_pooling_absorbed` as a PyTorch operator between matmuls, and the autograd around it."""

from typing import Any

import torch
from torch import Tensor, nn

from mfu_kernels.boundary import define
from mfu_kernels.checks import invalid
from mfu_kernels.limits import MAX_HEAD_DIM
from mfu_kernels.seed_pooling.boundary import pool
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes

from .reference import absorbed_queries, projected

MAX_WIDTH = 2 * MAX_HEAD_DIM


def value_parts(width: int) -> int:
    """Into how many parts x is split where it is pooled: a program holds what it pools in registers."""
    return 1 if width <= MAX_HEAD_DIM else 2


def _bwd_outputs(grad: Tensor, queries: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """Gradients of queries [M, D] and x [T, D]; one that is not needed is empty."""
    of_queries, of_x = (t.new_empty(t.shape if need else 0) for t, need in zip((queries, x), others[-1], strict=True))
    return of_queries, of_x


_backward = define(
    "seed_pooling_absorbed_bwd(Tensor grad, Tensor queries, Tensor x, Tensor offsets, Tensor out, Tensor softmax, "
    "float scale, SymInt max_length, bool[] needs) -> (Tensor, Tensor)",
    launcher="mfu_kernels.seed_pooling_absorbed.kernel:backward",
    outputs=_bwd_outputs,
)


class _AttendToEvents(torch.autograd.Function):
    """softmax(scale queries xᵀ) x of each row, [B, M, D]: `seed_pooling` whose keys and values are one tensor.

    Wide values are split as if they were those of several heads, all with the same keys.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, x: Tensor, offsets: Tensor, scale: float, max_length: int) -> Tensor:
        parts = value_parts(x.shape[1])
        if parts == 1:
            values = keys = x[:, None]
        else:
            values, keys = x.unflatten(1, (parts, -1)), x[:, None].expand(-1, parts, -1)
        seeds = queries[:, None].expand(-1, parts, -1)
        out, softmax, _ = pool(seeds, keys, values, None, offsets, scale, max_length, False)
        out, softmax = out.flatten(2), softmax[:, :, 0]
        ctx.save_for_backward(queries, x, offsets, out, softmax)
        ctx.others = scale, max_length
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:2])
        grads = _backward(grad, *ctx.saved_tensors, *ctx.others, needs)
        return *(g if need else None for g, need in zip(grads, needs, strict=True)), None, None, None


def seed_pooling_absorbed_triton(
    seeds: Tensor, x: Tensor, w_k: Tensor, w_v: Tensor, offsets: Tensor, *, scale: float, max_length: int
) -> Tensor:
    """The kernel between matmuls; arguments and result as `seed_pooling_absorbed` has them.

    A wide x is pooled in two parts; where its width is odd, a column of zeros makes them equal.
    """
    check_dtypes("seed_pooling_absorbed", seeds=seeds, x=x, w_k=w_k, w_v=w_v)
    width = x.shape[1]
    if width > MAX_WIDTH:
        allowed = f"at most {MAX_WIDTH} with impl='triton'; use impl='reference'"
        raise invalid("seed_pooling_absorbed", "the width of x", width, allowed)
    seeds, x, w_k, w_v = cast_for_matmul(seeds, x, w_k, w_v)
    if width % value_parts(width):
        x, w_k, w_v = (nn.functional.pad(tensor, (0, 1)) for tensor in (x, w_k, w_v))
    if scale <= 0:  # the kernels look for the highest score before they scale it
        seeds, scale = seeds * scale, 1.0
    pooled: Tensor = _AttendToEvents.apply(absorbed_queries(seeds, w_k), x, offsets.contiguous(), scale, max_length)
    return projected(pooled, w_v)
