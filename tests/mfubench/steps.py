"""A training step of a module, as the passes are given one."""

from collections.abc import Callable, Iterable

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
