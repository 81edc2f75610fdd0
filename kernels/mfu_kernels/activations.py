"""Element-wise activations that GDPA may use in place of softmax, by name and per head."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import invalid


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": _relu2,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "identity": _identity,
}


def activation_per_head(op: str, activation: str | Sequence[str], num_heads: int) -> tuple[str, ...]:
    """One name for each head, from one name for all or from a sequence of ``num_heads`` names.

    Raises:
        InvalidArgument: no name and no sequence, an unknown name, or another number of names.
    """
    if not isinstance(activation, (str, Sequence)):  # a set has no order
        raise invalid(op, "activation", f"of type {type(activation).__name__}", "one name, or a sequence of names")
    names = (activation,) * num_heads if isinstance(activation, str) else tuple(activation)
    if len(names) != num_heads:
        raise invalid(op, "activation", names, f"one name, or {num_heads} names, one for each head")
    for name in names:
        if name not in ACTIVATIONS:
            raise invalid(op, "activation", repr(name), ", ".join(ACTIVATIONS))
    return names


def activate(scores: Tensor, names: tuple[str, ...]) -> Tensor:
    """Apply to each head of ``scores`` [B, H, ...] its own activation."""
    if len(set(names)) == 1:
        return ACTIVATIONS[names[0]](scores)
    return torch.stack([ACTIVATIONS[name](scores[:, head]) for head, name in enumerate(names)], dim=1)
