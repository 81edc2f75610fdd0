"""`window_attention` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.formulas import needs_grad
from mfu_kernels.rotary_time.reference import rotary_time_reference
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes, check_head_dim

_MASK = "int? window, bool causal, float scale, SymInt max_length"


def _fwd_outputs(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """The output [T, H, d], and each query's highest score and log2 of its sum of weights below it, fp32 [2, H, T]."""
    return q.new_empty(q.shape), q.new_empty(2, q.shape[1], q.shape[0], dtype=torch.float32)


def _bwd_outputs(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, [T, H, d] each; one that is not needed is empty."""
    dq, dk, dv = (t.new_empty(t.shape if needed else 0) for t, needed in zip((q, k, v), others[-3:], strict=True))
    return dq, dk, dv


_forward = define(
    f"window_attention_fwd(Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? angles, {_MASK}) -> (Tensor, Tensor)",
    launcher="mfu_kernels.window_attention.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "window_attention_bwd(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? angles, Tensor out, "
    f"Tensor levels, {_MASK}, bool q_grad, bool k_grad, bool v_grad) -> (Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.window_attention.kernel_bwd:backward",
    outputs=_bwd_outputs,
)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, angles: Tensor | None, *mask: Any
    ) -> Tensor:
        out, levels = _forward(q, k, v, offsets, angles, *mask)
        ctx.save_for_backward(q, k, v, offsets, angles, out, levels)
        ctx.mask = mask
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:3]
        grads = _backward(grad, *ctx.saved_tensors, *ctx.mask, *needed)
        kept = (g if needs else None for g, needs in zip(grads, needed, strict=True))
        return *kept, None, None, *(None for _ in ctx.mask)


def window_attention_triton(
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
) -> Tensor:
    """The kernels; arguments and result as `window_attention` has them.

    The kernels have no gradient of ``angles``: where one is needed, q and k are rotated outside, by the reference.
    """
    q, k, v = cast_for_matmul(q, k, v)
    check_dtypes("window_attention", q=q, angles=angles)
    check_head_dim("window_attention", q.shape[2])
    if angles is not None and needs_grad(angles):
        q, k, angles = rotary_time_reference(q, angles), rotary_time_reference(k, angles), None
    out: Tensor = _WindowAttention.apply(q, k, v, offsets.contiguous(), angles, window, causal, scale, max_length)
    return out
