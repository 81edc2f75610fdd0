"""`hstu_attention` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes, check_head_dim

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? bias"
_MASK = "int norm_length, float alpha, int? window, int first_keys, int num_candidates, SymInt max_length"


def _fwd_outputs(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    """The output [T, H, d_v]."""
    return v.new_empty(v.shape)


def _bwd_outputs(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the bias; one that is not needed is empty."""
    tensors = (q, k, v, q if bias is None else bias)
    dq, dk, dv, dbias = (t.new_empty(t.shape if needs else 0) for t, needs in zip(tensors, others[-4:], strict=True))
    return dq, dk, dv, dbias


_forward = define(
    f"hstu_attention_fwd({_INPUTS}, {_MASK}) -> Tensor",
    launcher="mfu_kernels.hstu_attention.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    f"hstu_attention_bwd(Tensor grad, {_INPUTS}, {_MASK}, bool q_grad, bool k_grad, bool v_grad, bool bias_grad) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.hstu_attention.kernel_bwd:backward",
    outputs=_bwd_outputs,
)


class _HstuAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: Tensor | None, *mask: Any) -> Tensor:
        ctx.save_for_backward(q, k, v, offsets, bias)
        ctx.mask = mask
        return _forward(q, k, v, offsets, bias, *mask)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, _, bias = ctx.needs_input_grad[:5]
        grads = _backward(grad, *ctx.saved_tensors, *ctx.mask, q, k, v, bias)
        dq, dk, dv, dbias = (g if needs else None for g, needs in zip(grads, (q, k, v, bias), strict=True))
        return dq, dk, dv, None, dbias, *(None for _ in ctx.mask)


def hstu_attention_triton(
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
) -> Tensor:
    """The kernels; arguments and result as `hstu_attention` has them."""
    q, k, v = cast_for_matmul(q, k, v)
    check_dtypes("hstu_attention", q=q, bias=bias)
    for tensor in (q, v):
        check_head_dim("hstu_attention", tensor.shape[2])
    mask = (norm_length, alpha, window, first_keys, num_candidates, max_length)
    out: Tensor = _HstuAttention.apply(q, k, v, offsets.contiguous(), bias, *mask)
    return out
