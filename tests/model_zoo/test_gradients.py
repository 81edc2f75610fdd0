"""Every parameter of every model gets a gradient: one without is dead weight whose FLOPs and memory still count."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mfu_models import MODELS
from tests.model_zoo.random_batch import random_batch
from tests.model_zoo.settings import BASES, bce, lengths_of, settings, spec_of

WITHOUT_EVENTS = ((0, 5), (9, 0), (32, 32), (3, 7), (0, 0))  # in some rows, of either sequence
NO_NOISE = 1e-12  # fp64 rounding leaves less than this of a gradient that cancels out


def gradients(config: Any, samples: tuple[tuple[int, ...], ...]) -> dict[str, torch.Tensor]:
    """Each parameter's gradient of the training loss, in fp64."""
    torch.manual_seed(3)
    model = spec_of(config).build(config).double()
    allowed = spec_of(config).max_lengths(config)
    lengths = {name: [min(n, allowed.get(name, n)) for n in rows] for name, rows in lengths_of(config, samples).items()}
    batch = random_batch(config.schema, lengths, seed=3)
    bce(model(replace(batch, dense=batch.dense.double())), batch).backward()
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        found[name] = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
    return found


def assert_all_trained(grads: dict[str, torch.Tensor]) -> None:
    assert [name for name, grad in grads.items() if not grad.isfinite().all()] == []
    assert [name for name, grad in grads.items() if not grad.abs().max() > NO_NOISE] == []


def tiny(name: str) -> Any:
    """Tiny, with two experts where it has experts, so that the switch which joins them does something."""
    return MODELS[name].config("tiny", overrides={"num_experts": 2} if name == "kunlun" else {})


@pytest.mark.parametrize("config", settings(*BASES.values(), *map(tiny, BASES), activations=True))
def test_every_parameter_is_trained_in_every_setting(config: Any) -> None:
    """A switch cuts a parameter off from the score, or rows without events poison its gradient."""
    assert_all_trained(gradients(config, WITHOUT_EVENTS))


@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("name", BASES)
def test_every_parameter_is_trained_at_larger_sizes(name: str, size: str) -> None:
    """Towers of another depth end where nothing reads them."""
    assert_all_trained(gradients(MODELS[name].config(size), WITHOUT_EVENTS))


@pytest.mark.parametrize("name", BASES)
def test_gradients_are_finite_without_any_events(name: str) -> None:
    """A softmax or a mean over nothing makes NaN, from which training never recovers."""
    grads = gradients(tiny(name), ((0, 0), (0, 0)))
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads["head.layers.0.weight"].abs().max() > NO_NOISE
