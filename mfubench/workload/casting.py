"""All weights of a step's products in a shorter dtype by a call each way, as sharded training in mixed precision does.

Autocast casts each weight by itself where it is first used, and autograd each gradient back: of Kunlun large_plus'
linear layers alone 117 weights and biases, and as many gradients.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call


class _CastTogether(torch.autograd.Function):
    """Copies of fp32 ``weights`` in ``dtype``; their gradients go back in fp32."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_copied(weights, dtype))

    @staticmethod
    @once_differentiable
    def backward(_ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        copies = iter(_copied([grad for grad in grads if grad is not None], torch.float32))
        return None, *(None if grad is None else next(copies) for grad in grads)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


def product_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The fp32 parameters by name that autocast would cast wherever they are used: those of linear layers."""
    layers = [(name, layer) for name, layer in module.named_modules() if type(layer) is nn.Linear]
    found = {f"{name}.{own}": weight for name, layer in layers for own, weight in layer.named_parameters(recurse=False)}
    return {name: weight for name, weight in found.items() if weight.dtype == torch.float32}


def with_cast_weights(module: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    """``module`` as a function of its inputs, which sees the weights of its linear layers in ``dtype``.

    The results are those of autocast, to the bit, and so are the gradients, which the parameters get as ever.
    """
    weights = product_weights(module)
    copies: tuple[Tensor, ...] = _CastTogether.apply(dtype, *weights.values())
    return partial(_call, module, dict(zip(weights, copies, strict=True)))


def _call(module: nn.Module, weights: dict[str, Tensor], *inputs: Any) -> Any:
    return functional_call(module, weights, inputs, tie_weights=False)  # each is named; to look for others takes time
