"""Watching a model at work, and telling what depends on what."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mfu_models.batch import Batch

SAMPLES = ((0, 4), (3, 0), (7, 6), (0, 4), (0, 0), (2, 5))  # clicks and views of each
Calls = dict[str, list[tuple[tuple[Tensor, ...], Tensor]]]


def scores(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(batch)
    return logits


def watch(model: nn.Module, batch: Batch) -> Calls:
    """Arguments and result of each call of each submodule in one forward pass, by the submodule's name."""
    calls: Calls = {name: [] for name, _ in model.named_modules()}

    def note(name: str) -> Any:
        return lambda _module, args, out: calls[name].append((args, out))

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    scores(model, batch)
    for handle in handles:
        handle.remove()
    return calls


def change(batch: Batch, name: str, **tensors: Tensor) -> Batch:
    """``batch`` with parts of its sequence ``name`` replaced."""
    return replace(batch, sequences={**batch.sequences, name: replace(batch.sequences[name], **tensors)})


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def moved(before: Tensor, after: Tensor) -> list[bool]:
    """Which items, along the first axis, differ."""
    differences: list[bool] = ((before - after).reshape(len(before), -1).abs().amax(dim=1) > 1e-8).tolist()
    return differences


def assert_differ(first: Tensor, second: Tensor) -> None:
    assert (first - second).abs().max() > 1e-8


def influence(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """bool [out, in]: which of the items of ``x`` (its first axis) each item of the output depends on."""
    jacobian = torch.autograd.functional.jacobian(function, x)
    outs, ins = jacobian.shape[0], x.shape[0]
    return jacobian.movedim(x.ndim, 1).reshape(outs, ins, -1).abs().amax(dim=-1) > 1e-12
