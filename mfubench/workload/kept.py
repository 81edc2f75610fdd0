"""A module and its optimizers that are run for measuring, and afterwards are what they were."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


@contextmanager
def kept(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], *, device: torch.device | None = None
) -> Iterator[None]:
    """Afterwards parameters, buffers and the optimizers' states are what they were; copies of them are on ``device``.

    That is where each is, unless another is asked for. All stay the same objects, which graphs and others may hold.
    """
    parameters = [(parameter, _copy(parameter, device)) for parameter in changed_by(module, optimizers)]
    states = [
        (optimizer, [dict(group) for group in optimizer.param_groups], _copied(optimizer.state, device))
        for optimizer in optimizers
    ]
    with buffers_kept(module, device=device):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in parameters:
                    parameter.copy_(value)
                for optimizer, groups, state in states:
                    for group, before in zip(optimizer.param_groups, groups, strict=True):
                        group.clear()
                        group.update(before)
                    _put_back(optimizer.state, state)


def changed_by(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    """What a step may change: the parameters of ``module``, and what else the optimizers update."""
    updated = (parameter for each in optimizers for group in each.param_groups for parameter in group["params"])
    return list({id(parameter): parameter for parameter in (*module.parameters(), *updated)}.values())


@contextmanager
def buffers_kept(module: nn.Module, *, device: torch.device | None = None) -> Iterator[None]:
    """Afterwards every buffer, in the state dict or not, is and holds what it was: a step may count, or average."""
    named = [
        (owner, name, buffer, _copy(buffer, device))
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in named:
                owner._buffers[name] = buffer
                buffer.copy_(value)


@contextmanager
def chance_kept() -> Iterator[None]:
    """Afterwards the generators of torch, random and numpy.random are where they were."""
    others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])


def _copy(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor.detach().clone() if device is None else tensor.detach().to(device, copy=True)


State = list[tuple[Any, list[Any], list[Any], Any]]  # of each parameter: leaves, copies of those that are tensors, tree


def _copied(states: Any, device: torch.device | None) -> State:
    found = []
    for parameter, state in states.items():
        leaves, tree = tree_flatten(state)
        copies = [_copy(leaf, device) if isinstance(leaf, Tensor) else None for leaf in leaves]
        found.append((parameter, leaves, copies, tree))
    return found


def _put_back(states: Any, found: State) -> None:
    states.clear()
    for parameter, leaves, copies, tree in found:
        for leaf, value in zip(leaves, copies, strict=True):
            if value is not None:
                leaf.copy_(value)
        states[parameter] = tree_unflatten(leaves, tree)
