"""A training step of a module, as the passes are given one, and a product of a user's own in it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mfubench.measure.scopes import BACKWARD, FORWARD, LOSS, OPTIMIZER, ScopeTracker


def training_step(
    model: nn.Module, *inputs: Tensor, optimizers: Iterable[torch.optim.Optimizer] = ()
) -> Callable[[ScopeTracker], None]:
    """One that marks its phases, with the sum of the output as loss."""

    def step(tracker: ScopeTracker) -> None:
        with tracker.phase(FORWARD):
            output = model(*inputs)
        with tracker.phase(LOSS):
            loss = output.sum()
        with tracker.phase(BACKWARD):
            loss.backward()
        with tracker.phase(OPTIMIZER):
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return step


class Product(torch.autograd.Function):
    """A product with a backward of its own, which repeats nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.T @ gradient
