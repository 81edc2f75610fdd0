"""RMSNorm implementations that are wrong in one way each, to see that the contract refuses them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mfu_kernels.rms_norm.reference import rms_norm_reference


def right(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    return rms_norm_reference(x, weight, eps=eps)


def wrong_eps(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    return rms_norm_reference(x, weight, eps=eps * 1.5 if eps > 0.01 else eps)


def low_precision(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    coarse = x.bfloat16().to(x.dtype)  # eight bits where the input has more
    return rms_norm_reference(coarse, weight, eps=eps)


def unwritten_row(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    out = torch.empty_like(x)
    out[1:] = rms_norm_reference(x, weight, eps=eps)[1:]
    return out


def unlike_bits(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    out = rms_norm_reference(x, weight, eps=eps)
    return out + torch.rand(()) * torch.finfo(x.dtype).eps * out.detach().abs()


def wrong_weight_gradient(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], None, eps) if weight is None else _scaled(x, weight, eps)


def _scaled(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = rms_norm_reference(x, weight, eps=eps)
    return out + (out * 0.02 - out.detach() * 0.02) * (weight - weight.detach() + 1).to(x.dtype).mean()


def crashes_on_no_rows(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
    if x.shape[0] == 0:
        raise IndexError("no rows")
    return rms_norm_reference(x, weight, eps=eps)


BROKEN: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (wrong_eps, low_precision, unwritten_row, unlike_bits, wrong_weight_gradient, crashes_on_no_rows)
}
