"""`window_attention` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.rotary_time.boundary import rotary_time_triton
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes, check_head_dim

_MASK = "int? window, bool causal, float scale, SymInt max_length"


def _fwd_outputs(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """The output [T, H, d], and of each query log2 of its sum of weights, fp32 [1, H, T].

    For fp32, [2, H, T]: its highest score, and log2 of the sum of weights relative to it. One number would be rounded
    as coarsely as scores of a hundred are; the other dtypes round the weights themselves more coarsely than that.
    """
    parts = 2 if q.element_size() == 4 else 1
    return q.new_empty(q.shape), q.new_empty(parts, q.shape[1], q.shape[0], dtype=torch.float32)


def _bwd_outputs(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, [T, H, d] each; one that is not needed is empty."""
    dq, dk, dv = (t.new_empty(t.shape if needed else 0) for t, needed in zip((q, k, v), others[-3:], strict=True))
    return dq, dk, dv


_forward = define(
    f"window_attention_fwd(Tensor q, Tensor k, Tensor v, Tensor offsets, {_MASK}) -> (Tensor, Tensor)",
    launcher="mfu_kernels.window_attention.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "window_attention_bwd(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor out, Tensor levels, "
    f" {_MASK}, bool q_grad, bool k_grad, bool v_grad) -> (Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.window_attention.kernel_bwd:backward",
    outputs=_bwd_outputs,
)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *mask: Any) -> Tensor:
        out, levels = _forward(q, k, v, offsets, *mask)
        ctx.save_for_backward(q, k, v, offsets, out, levels)
        ctx.mask = mask
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:3]
        grads = _backward(grad, *ctx.saved_tensors, *ctx.mask, *needed)
        kept = (g if needs else None for g, needs in zip(grads, needed, strict=True))
        return *kept, None, *(None for _ in ctx.mask)


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

    q and k are rotated before, once: a key's rotation inside would be made again in every program that sees the key,
    for about as many instructions as the softmax takes.
    """
    q, k, v = cast_for_matmul(q, k, v)
    check_dtypes("window_attention", q=q, angles=angles)
    check_head_dim("window_attention", q.shape[2])
    if angles is not None:
        q, k = rotary_time_triton(q, angles), rotary_time_triton(k, angles)
    if scale < 0:  # the kernels take maxima before they scale
        q, scale = -q, -scale
    out: Tensor = _WindowAttention.apply(q, k, v, offsets.contiguous(), window, causal, scale, max_length)
    return out
