"""`gdpa_block` as PyTorch operators, and the autograd around them."""

from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import as_given, define, separate
from mfu_kernels.formulas import needs_grad
from mfu_kernels.triton_checks import cast_for_matmul, check_dtypes, check_head_dim


def _fwd_outputs(x: Tensor, k: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The block's output [T, H, d]; for a backward to come also n in k's dtype and o, [T, H, d], and of each event
    1 / rms of o and 1 / std of x, fp32 [2, T]; all empty if that is not to be saved."""
    shape = x.shape if others[-1] else (0,)
    statistics = x.new_empty((2, *shape[:1]), dtype=torch.float32)
    return x.new_empty(x.shape), k.new_empty(shape), x.new_empty(shape), statistics


def _bwd_outputs(grad: Tensor, passed: Tensor | None, k: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """Gradient of x, with what is ``passed`` from x's other reader, empty if it is not needed; the needed ones of k and
    v side by side, [B, n_kv, n, H, d]."""
    needs_x, *needs_kv = others[-1]
    rows, keys, *head = k.shape
    return grad.new_empty(grad.shape if needs_x else (0,)), k.new_empty(rows, keys, sum(needs_kv), *head)


_forward = define(
    "gdpa_block_fwd(Tensor x, Tensor k, Tensor v, Tensor offsets, str[] activation, float scale, float eps, "
    "SymInt max_length, bool save) -> (Tensor, Tensor, Tensor, Tensor)",
    launcher="mfu_kernels.gdpa_block.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "gdpa_block_bwd(Tensor grad, Tensor? passed, Tensor k, Tensor v, Tensor offsets, Tensor normed, Tensor inner, "
    "Tensor statistics, str[] activation, float scale, SymInt max_length, bool[] needs) -> (Tensor, Tensor)",
    launcher="mfu_kernels.gdpa_block.kernel_bwd:backward",
    outputs=_bwd_outputs,
)


class _GdpaBlock(torch.autograd.Function):
    """Of k and v, or of one tensor [B, n_kv, 2, H, d] that holds them and gets its gradient as it was written.

    If ``passes``, x is an output too, for another reader, whose gradient is added where that of x is written.
    LN(x) is saved and not x: memory grows by x's size where somebody else keeps x anyway, and a backward neither makes
    it again nor writes it down for GDPA's.
    """

    @staticmethod
    def forward(
        ctx: Any, offsets: Tensor, activation: list[str], scale: float, eps: float, max_length: int, save: bool,
        passes: bool, x: Tensor, *kv: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        out, *saved = _forward(x, *separate(kv, dim=2), offsets, activation, scale, eps, max_length, save)
        ctx.save_for_backward(offsets, *saved, *kv)
        ctx.options = (activation, scale, max_length)
        return (out, x.view_as(x)) if passes else out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, passed: Tensor | None = None) -> tuple[Tensor | None, ...]:
        offsets, normed, inner, statistics, *kv = ctx.saved_tensors
        if grad is None:
            return *(None,) * 7, passed, *(None for _ in kv)
        needs_x, *needed = ctx.needs_input_grad[7:]
        needs = [needs_x, *(needed * 2 if len(kv) == 1 else needed)]
        dx, dkv = _backward(grad, passed, *separate(kv, dim=2), offsets, normed, inner, statistics, *ctx.options, needs)
        return *(None,) * 7, dx if needs_x else None, *as_given(dkv, needed, dim=2)


def gdpa_block_triton(
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
) -> Any:
    """The kernels; arguments and result as `gdpa_block` has them, ``packed`` [B, n_kv, 2, H, d] if k and v are its
    slices, and then, where x needs a gradient, also x for another reader."""
    check_dtypes("gdpa_block", x=x, k=k, v=v)
    check_head_dim("gdpa_block", x.shape[2])
    kv = cast_for_matmul(*((k, v) if packed is None else (packed,)))
    save, names = needs_grad(x, *kv), list(activation)
    passes = packed is not None and needs_grad(x)
    return _GdpaBlock.apply(offsets.contiguous(), names, scale, eps, max_length, save, passes, x, *kv)
