"""All weights of a step's products in a shorter dtype by a launch or two, as sharded training in mixed precision does.

Autocast casts each weight by itself where it is first used, and autograd each gradient back: Kunlun large_plus has
nearly 300 such launches a step, whose time is the host's more than the GPU's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.func import functional_call


class _CastTogether(torch.autograd.Function):
    """Copies of ``weights`` in ``dtype``; their gradients go back in the weights' own dtype."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [weight.dtype for weight in weights]
        return tuple(_copied(weights, [dtype] * len(weights)))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dtypes: list[torch.dtype] = ctx.dtypes  # type: ignore[attr-defined]
        known = [(grad, dtype) for grad, dtype in zip(grads, dtypes, strict=True) if grad is not None]
        copies = iter(_copied([grad for grad, _ in known], [dtype for _, dtype in known]))
        return None, *(None if grad is None else next(copies) for grad in grads)


def _copied(tensors: Any, dtypes: list[torch.dtype]) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
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
    return functional_call(module, weights, inputs)
