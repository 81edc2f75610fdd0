"""`embedding` as PyTorch operators, and the autograd around them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mfu_kernels.boundary import define
from mfu_kernels.checks import invalid
from mfu_kernels.triton_checks import check_dtypes, check_row_width

MAX_LOOKUPS = 1 << 30  # they are numbered in 32 bits


def _fwd_outputs(weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    """The rows that are looked up, [N, F, w]."""
    return weight.new_empty(*ids.shape, weight.shape[1])


def _bwd_outputs(grad: Tensor, ids: Tensor, offsets: Tensor, num_rows: int) -> Tensor:
    """The gradient of the table, [R, w]."""
    return grad.new_empty(num_rows, grad.shape[2])


_forward = define(
    "embedding_fwd(Tensor weight, Tensor ids, Tensor offsets) -> Tensor",
    launcher="mfu_kernels.embedding.kernel:forward",
    outputs=_fwd_outputs,
)
_backward = define(
    "embedding_bwd(Tensor grad, Tensor ids, Tensor offsets, int num_rows) -> Tensor",
    launcher="mfu_kernels.embedding.kernel_bwd:backward",
    outputs=_bwd_outputs,
)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(ids, offsets)
        ctx.num_rows = weight.shape[0]
        return _forward(weight, ids, offsets)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _backward(grad, *ctx.saved_tensors, ctx.num_rows), None, None


def embedding_triton(weight: Tensor, ids: Tensor, offsets: Tensor, *, vocabs: Sequence[int] | None) -> Tensor:
    """The kernels; arguments and result as `embedding` has them; ``vocabs`` are not needed."""
    check_dtypes("embedding", weight=weight)
    check_row_width("embedding", weight.shape[1])
    if ids.numel() > MAX_LOOKUPS:
        raise invalid("embedding", "the number of ids", ids.numel(), f"at most {MAX_LOOKUPS} with impl='triton'")
    out: Tensor = _Embedding.apply(weight, ids, offsets)
    return out
