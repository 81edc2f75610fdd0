"""The least that an update of parameters moves, by the gradients that it finds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mfubench.measure.scopes import OPTIMIZER

from .step import Phase


@dataclass(slots=True)
class Update:
    """What ``optimizers`` find when their part of a step begins."""

    optimizers: Sequence[torch.optim.Optimizer]
    gradients: list[tuple[torch.optim.Optimizer, Tensor, Tensor]] = field(default_factory=list)  # with whose they are

    def seen_in(self, phase: Phase) -> Phase:
        """``phase``, which marks a step's parts, with a look before the update."""

        @contextmanager
        def looking(name: str) -> Iterator[None]:
            if name == OPTIMIZER:
                self.gradients = [
                    (optimizer, parameter, parameter.grad)
                    for optimizer in self.optimizers
                    for group in optimizer.param_groups
                    for parameter in group["params"]
                    if parameter.grad is not None
                ]
            with phase(name):
                yield

        return looking

    def least_bytes(self) -> int:
        """Gradients read once, parameters and optimizer state read and written once; of a table, the batch's rows."""
        return sum(_least_bytes(*found) for found in self.gradients)


def _least_bytes(optimizer: torch.optim.Optimizer, parameter: Tensor, gradient: Tensor) -> int:
    state = [item for item in optimizer.state.get(parameter, {}).values() if isinstance(item, Tensor)]
    if not gradient.is_sparse:
        return gradient.nbytes + 2 * (parameter.nbytes + sum(item.nbytes for item in state))
    indices, total = gradient._indices(), len(parameter)
    rows = indices[0].unique().numel()
    moved = (item.nbytes * rows // total if item.shape[:1] == (total,) else item.nbytes for item in (parameter, *state))
    return indices.nbytes + gradient._values().nbytes + 2 * sum(moved)
