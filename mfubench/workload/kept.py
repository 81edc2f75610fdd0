"""A module and its optimizers that are run for measuring, and afterwards are what they were."""

import copy
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

    That is where each is, unless another is asked for. All stay the same objects, which graphs and others may hold;
    what only a state dict of its own kind knows is put back by it.
    """
    parameters = [(parameter, _copy(parameter, device)) for parameter in changed_by(module, optimizers)]
    states = [(optimizer, _Saved(optimizer, device)) for optimizer in optimizers]
    with buffers_kept(module, device=device):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in parameters:
                    parameter.copy_(value)
                for optimizer, saved in states:
                    saved.put_back(optimizer)


def changed_by(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    """What a step may change: the parameters of ``module``, and what else the optimizers update."""
    updated = (parameter for each in optimizers for group in each.param_groups for parameter in group["params"])
    return list({id(parameter): parameter for parameter in (*module.parameters(), *updated)}.values())


@contextmanager
def buffers_kept(module: nn.Module, *, device: torch.device | None = None) -> Iterator[None]:
    """Afterwards every buffer, in the state dict or not, is and holds what it was: a step may count, or average.

    So does what modules add to their state dicts themselves.
    """
    owners = [(owner, dict(owner._buffers)) for owner in module.modules()]
    values = [(buffer, _copy(buffer, device)) for _, own in owners for buffer in own.values() if buffer is not None]
    extra = [
        (owner, copy.deepcopy(owner.get_extra_state()))
        for owner, _ in owners
        if type(owner).get_extra_state is not nn.Module.get_extra_state
    ]
    try:
        yield
    finally:
        for owner, own in owners:
            owner._buffers.clear()
            owner._buffers.update(own)
        for buffer, value in values:
            _write(buffer, value)
        for owner, state in extra:
            owner.set_extra_state(state)


def _write(buffer: Tensor, value: Tensor) -> None:
    """Let ``buffer`` hold ``value`` again, if it does not: some, as expanded ones, cannot be written at all."""
    with torch.no_grad(), torch.inference_mode(buffer.is_inference()):
        if buffer.shape != value.shape:
            buffer.resize_(value.shape)
        elif buffer.layout == torch.strided and torch.equal(buffer, value.to(buffer.device)):
            return
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
    if torch.cuda.is_available() and not torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(torch.initial_seed())  # which waits until it is: seeding has put another there


def _copy(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor.detach().clone() if device is None else tensor.detach().to(device, copy=True)


class _Saved:
    """An optimizer's states, the options of its groups, and what a ``load_state_dict`` of its own kind puts back."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device | None) -> None:
        own = type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict
        self.own = copy.deepcopy(optimizer.state_dict()) if own else None
        self.states = [(parameter, _Tree(state, device)) for parameter, state in optimizer.state.items()]
        self.groups = [
            _Tree({name: value for name, value in group.items() if name != "params"}, device)
            for group in optimizer.param_groups
        ]

    def put_back(self, optimizer: torch.optim.Optimizer) -> None:
        """All of it, in the tensors that hold it."""
        if self.own is not None:
            optimizer.load_state_dict(self.own)
        optimizer.state.clear()
        optimizer.state.update({parameter: tree.put_back() for parameter, tree in self.states})
        for group, tree in zip(optimizer.param_groups, self.groups, strict=True):
            parameters = group["params"]
            group.clear()
            group.update(params=parameters, **tree.put_back())


class _Tree:
    """Values in dicts and lists, with copies of those that are tensors."""

    def __init__(self, tree: Any, device: torch.device | None) -> None:
        self.leaves, self.shape = tree_flatten(tree)
        self.copies = [_copy(leaf, device) if isinstance(leaf, Tensor) else None for leaf in self.leaves]

    def put_back(self) -> Any:
        """The same, in which each tensor holds what it held."""
        for leaf, value in zip(self.leaves, self.copies, strict=True):
            if value is not None:
                leaf.copy_(value)
        return tree_unflatten(self.leaves, self.shape)
