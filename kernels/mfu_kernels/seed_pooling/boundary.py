"""`seed_pooling` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes, check_head_dim


def _fwd_outputs(
    seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float, max_length: int
) -> tuple[Tensor, Tensor]:
    """The pooled rows [B, S, H, d]; of each softmax the highest score before scaling, and the denominator over it.

    The two are fp32 [2, B, H, S]. One number, their log-sum-exp, would round away what fp32 has beside a large score.
    """
    num_rows, (num_seeds, num_heads, _) = offsets.shape[0] - 1, seeds.shape
    softmax = seeds.new_empty(2, num_rows, num_heads, num_seeds, dtype=torch.float32)
    return seeds.new_empty(num_rows, *seeds.shape), softmax


def _bwd_outputs(
    grad: Tensor,
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    out: Tensor,
    softmax: Tensor,
    scale: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of seeds [S, H, d], k and v [T, H, d]; one that is not needed is empty."""
    dseeds, dk, dv = (
        tensor.new_empty(tensor.shape if needed else (0,)) for tensor, needed in zip((seeds, k, v), needs, strict=True)
    )
    return dseeds, dk, dv


_forward = define(
    "seed_pooling_fwd(Tensor seeds, Tensor k, Tensor v, Tensor offsets, float scale, SymInt max_length) "
    "-> (Tensor, Tensor)",
    launcher="mfu_kernels.seed_pooling.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "seed_pooling_bwd(Tensor grad, Tensor seeds, Tensor k, Tensor v, Tensor offsets, Tensor out, Tensor softmax, "
    "float scale, bool[] needs) -> (Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.seed_pooling.kernel_bwd:backward",
    outputs=_bwd_outputs,
)


class _SeedPooling(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float, max_length: int
    ) -> Tensor:
        out, softmax = _forward(seeds, k, v, offsets, scale, max_length)
        ctx.save_for_backward(seeds, k, v, offsets, out, softmax)
        ctx.scale = scale
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:3])
        grads = _backward(grad, *ctx.saved_tensors, ctx.scale, needs)
        return *(g if needed else None for g, needed in zip(grads, needs, strict=True)), None, None, None


def seed_pooling_triton(
    seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, scale: float, max_length: int
) -> Tensor:
    """The kernel; arguments and result as `seed_pooling` has them."""
    check_dtypes("seed_pooling", seeds=seeds, k=k, v=v)
    check_head_dim("seed_pooling", seeds.shape[2])
    if scale <= 0:  # the kernels look for the highest score before they scale it
        seeds, scale = seeds * scale, 1.0
    out: Tensor = _SeedPooling.apply(*cast_for_matmul(seeds, k, v), offsets.contiguous(), scale, max_length)
    return out
