"""`window_attention` as PyTorch operators, and the autograd around them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import as_given, define, separate
from mfu_kernels.formulas import needs_grad
from mfu_kernels.rotary_time.reference import rotary_time_reference
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes, check_head_dim

_MASK = "int? window, bool causal, float scale, SymInt max_length"


def _fwd_outputs(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, angles: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output [T, H, d], and of each query log2 of its sum of weights, fp32 [1, H, T].

    For fp32, [2, H, T]: its highest score, and log2 of the sum of weights relative to it. One number would be rounded
    as coarsely as scores of a hundred are; the other dtypes round the weights themselves more coarsely than that.

    Of ``angles``, also q and k as they were turned, [T, 2, H, d], and what turns them back, [T, 1, d], fp16 or fp32: a
    cosine and a sine of each angle, which are (1, 0) turned back by it. Without angles both are empty.
    """
    precise, (num_tokens, num_heads, d) = q.element_size() == 4, q.shape
    levels = q.new_empty(2 if precise else 1, num_heads, num_tokens, dtype=torch.float32)
    num_turned = 0 if angles is None else num_tokens
    turns = q.new_empty(num_turned, 1, d, dtype=torch.float32 if precise else torch.float16)
    return q.new_empty(q.shape), levels, q.new_empty(num_turned, 2, num_heads, d), turns


def _bwd_outputs(grad: Tensor, q: Tensor, *others: Any) -> Tensor:
    """The needed ones of the gradients of q, k and v, side by side, [T, n, H, d]: what a fused projection wants."""
    return q.new_empty(q.shape[0], sum(others[-3:]), *q.shape[1:])


_forward = define(
    f"window_attention_fwd(Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? angles, {_MASK}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.window_attention.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "window_attention_bwd(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor out, Tensor levels, "
    f"Tensor? turns, {_MASK}, bool q_grad, bool k_grad, bool v_grad) -> Tensor",
    launcher="mfu_kernels.window_attention.kernel_bwd:backward",
    outputs=_bwd_outputs,
)


class _WindowAttention(torch.autograd.Function):
    """Of q, k and v, or of one tensor [T, 3, H, d] that holds them and gets its gradient as it was written."""

    @staticmethod
    def forward(ctx: Any, offsets: Tensor, angles: Tensor | None, mask: Sequence[Any], *qkv: Tensor) -> Tensor:
        q, k, v = separate(qkv)
        out, levels, turned, turns = _forward(q, k, v, offsets, angles, *mask)
        if angles is None:
            ctx.save_for_backward(q, k, v, offsets, out, levels, None)
        else:
            ctx.save_for_backward(*turned.unbind(1), v, offsets, out, levels, turns)
        ctx.mask = mask
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, _, _, *needed = ctx.needs_input_grad
        grads = _backward(grad, *ctx.saved_tensors, *ctx.mask, *(needed * 3 if len(needed) == 1 else needed))
        return None, None, None, *as_given(grads, needed)


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
    packed: Tensor | None = None,
) -> Tensor:
    """The kernels; arguments and result as `window_attention` has them, ``packed`` [T, 3, H, d] if q, k, v are its.

    q and k are turned once, where a kernel does not walk along rows before it: a key's rotation would be made again in
    every program that sees the key, for about as many instructions as the softmax takes. Their gradients are turned
    back where they are written. There is no gradient of ``angles``: where one is needed, the reference turns.
    """
    check_dtypes("window_attention", q=q, angles=angles)
    check_head_dim("window_attention", q.shape[2])
    qkv: Sequence[Tensor]
    if packed is None or scale < 0 or needs_grad(angles):
        q, k, v = cast_for_matmul(q, k, v)
        if angles is not None and needs_grad(angles):
            q, k, angles = rotary_time_reference(q, angles), rotary_time_reference(k, angles), None
        if scale < 0:  # the kernels take maxima before they scale
            q, scale = -q, -scale
        qkv = (q, k, v)
    else:
        qkv = cast_for_matmul(packed)
    mask = window, causal, scale, max_length
    out: Tensor = _WindowAttention.apply(offsets.contiguous(), angles, mask, *qkv)
    return out
