"""`seed_pooling` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import as_given, define, separate
from mfu_kernels.formulas import needs_grad
from mfu_kernels.rotary_time.boundary import rotary_time_triton
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes, check_head_dim


def _fwd_outputs(
    seeds: Tensor, k: Tensor, v: Tensor, angles: Tensor | None, offsets: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The pooled rows [B, S, H, d]; what backward needs of each softmax; the turned keys [T, H, d], empty if not saved.

    Of a softmax, fp32 [2, B, H, S]: the highest score before scaling, and the denominator over it. One number, their
    log-sum-exp, would round away what fp32 has beside a large score.
    """
    num_rows, (num_seeds, num_heads, _) = offsets.shape[0] - 1, seeds.shape
    softmax = seeds.new_empty(2, num_rows, num_heads, num_seeds, dtype=torch.float32)
    turned = k.new_empty(k.shape if others[-1] and angles is not None else 0)
    return seeds.new_empty(num_rows, num_seeds, *v.shape[1:]), softmax, turned


def _bwd_outputs(grad: Tensor, seeds: Tensor, k: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """Gradient of seeds [S, H, d], empty if it is not needed; the needed ones of k and v side by side, [T, n, H, d]."""
    needs_seeds, *needs_kv = others[-1]
    return seeds.new_empty(seeds.shape if needs_seeds else 0), k.new_empty(k.shape[0], sum(needs_kv), *k.shape[1:])


pool = define(
    "seed_pooling_fwd(Tensor seeds, Tensor k, Tensor v, Tensor? angles, Tensor offsets, float scale, "
    "SymInt max_length, bool saves) -> (Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.seed_pooling.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "seed_pooling_bwd(Tensor grad, Tensor seeds, Tensor k, Tensor v, Tensor? angles, Tensor offsets, Tensor out, "
    "Tensor softmax, float scale, bool[] needs) -> (Tensor, Tensor)",
    launcher="mfu_kernels.seed_pooling.kernel_bwd:backward",
    outputs=_bwd_outputs,
)


class _SeedPooling(torch.autograd.Function):
    """Of k and v, or of one tensor [T, 2, H, d] that holds them and gets its gradient as it was written."""

    @staticmethod
    def forward(
        ctx: Any, saves: bool, angles: Tensor | None, offsets: Tensor, scale: float, max_length: int, seeds: Tensor,
        *kv: Tensor,
    ) -> Tensor:  # fmt: skip
        k, v = separate(kv)
        out, softmax, turned = pool(seeds, k, v, angles, offsets, scale, max_length, saves)
        ctx.save_for_backward(turned, angles, offsets, out, softmax, seeds, *kv)
        ctx.scale = scale
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        turned, angles, offsets, out, softmax, seeds, *kv = ctx.saved_tensors
        k, v = separate(kv)
        needs_seeds, *needed = ctx.needs_input_grad[5:]
        needs = [needs_seeds, *(needed * 2 if len(kv) == 1 else needed)]
        k = k if angles is None else turned
        dseeds, dkv = _backward(grad, seeds, k, v, angles, offsets, out, softmax, ctx.scale, needs)
        return *(None,) * 5, dseeds if needs_seeds else None, *as_given(dkv, needed)


def seed_pooling_triton(
    seeds: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    angles: Tensor | None,
    *,
    scale: float,
    max_length: int,
    packed: Tensor | None = None,
) -> Tensor:
    """The kernel; arguments and result as `seed_pooling` has them, ``packed`` [T, 2, H, d] if k and v are its slices.

    Forward turns keys where it reads them, and writes them down for backward, which turns gradients where it writes
    them. There is none of ``angles``: where one is needed, keys are turned before.
    """
    check_dtypes("seed_pooling", seeds=seeds, k=k, v=v, angles=angles)
    check_head_dim("seed_pooling", seeds.shape[2])
    if scale <= 0:  # the kernels look for the highest score before they scale it
        seeds, scale = seeds * scale, 1.0
    if angles is not None and needs_grad(angles):
        k, packed, angles = rotary_time_triton(k, angles), None, None
    tensors = cast_for_matmul(seeds, *((k, v) if packed is None else (packed,)))
    out: Tensor = _SeedPooling.apply(needs_grad(*tensors), angles, offsets.contiguous(), scale, max_length, *tensors)
    return out
