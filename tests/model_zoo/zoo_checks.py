"""What every model of the zoo must pass: FLOPs counted in three ways, gradients everywhere, no sample sees another."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mfu_models import ModelSpec
from mfu_models.batch import Batch, Field
from mfu_models.common.flops import FlopCount
from mfubench.data import kuairand, movielens
from mfubench.data.logs import log_schema
from mfubench.measure.count import count_step
from mfubench.workload.zoo import num_params
from tests.model_zoo import settings
from tests.model_zoo.loops import ops_as_loops
from tests.model_zoo.random_batch import random_batch
from tests.model_zoo.settings import CLICKS, VIEWS, bce, schema_with, take

Lengths = Mapping[str, Sequence[int]]

AWKWARD = schema_with(CLICKS, VIEWS)
_USER, _ITEM, _SIDES = Field("user", 40), Field("item", 60), (Field("genre", 9), Field("action", 13))
RECORDED = {
    "kuairand": log_schema("kuairand", _USER, _ITEM, _SIDES, kuairand.SEQUENCES, "is_click", (Field("tab", 5),)),
    "movielens": log_schema("movielens", _USER, _ITEM, _SIDES, movielens.SEQUENCES, "rating_of_4_or_more"),
}
"""Schemas of the recorded data sources, with small vocabularies."""


def lengths_of(config: Any, samples: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """Lengths by sequence, from each sample's lengths in the schema's order (which may have fewer sequences)."""
    return settings.lengths_of(config, [sample[: len(config.schema.sequences)] for sample in samples])


def build(spec: ModelSpec, config: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with the plain implementation of every op and the same weights at each call."""
    torch.manual_seed(1)
    return spec.build(config, "reference").to(dtype)


def batch_of(config: Any, lengths: Lengths, seed: int = 0) -> Batch:
    """A random batch of requests with these lengths and the config's number of candidates."""
    return random_batch(config.schema, lengths, seed, getattr(config, "num_candidates", 1))


def alone(batch: Batch, request: int) -> Batch:
    """The batch that holds only this request of ``batch``."""
    return take(batch, [request])


def check_flops(spec: ModelSpec, config: Any, lengths: Lengths) -> None:
    """The closed form equals the count pass over the jagged batch and the sum over samples run alone, to the FLOP."""
    model, batch = build(spec, config), batch_of(config, lengths)
    closed = spec.model_flops(config, lengths)
    count = count_step(model, lambda _tracker: bce(model(batch), batch).backward())
    assert (count.total("fwd").model, count.total("bwd").model) == (closed.fwd, closed.bwd)
    assert not count.unknown_ops
    each = [_executed_alone(model, alone(batch, i)) for i in range(batch.num_requests)]
    assert (sum(one.fwd for one in each), sum(one.bwd for one in each)) == (closed.fwd, closed.bwd)
    with torch.no_grad():
        inferred = count_step(model.eval(), lambda _tracker: model(batch))
    assert inferred.total().model == closed.inference.fwd


def check_gradients(spec: ModelSpec, config: Any, lengths: Lengths) -> None:
    """Every parameter gets a finite gradient that is not all zeros."""
    model, batch = build(spec, config), batch_of(config, lengths)
    bce(model(batch), batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        gradient = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
        assert gradient.isfinite().all(), f"{name} has a gradient that is not finite"
        assert gradient.any(), f"{name} has a gradient of zeros"


def check_alone(spec: ModelSpec, config: Any, lengths: Lengths) -> None:
    """A request's logits do not depend on which others are in its batch."""
    model, batch = build(spec, config).eval(), batch_of(config, lengths)
    assert model(batch).shape == (batch.num_impressions,)
    singles = [model(alone(batch, i)) for i in range(batch.num_requests)]
    torch.testing.assert_close(torch.cat(singles), model(batch), rtol=1e-5, atol=1e-5)


def check_size(spec: ModelSpec, config: Any, gflops: float, dense_params: float, unread: float = 0.0) -> None:
    """Forward GFLOP of a sample at full length and dense parameters are the ladder's, to 2 % and 3 %.

    ``unread`` are GFLOP that the ladder has beyond the model's: of work that no score reads.
    """
    assert spec.full_length_flops(config).fwd / 1e9 + unread == pytest.approx(gflops, rel=0.02)
    with torch.device("meta"):
        module = spec.build(config)
    assert num_params(module)[1] == pytest.approx(dense_params, rel=0.03)


def joint_term(function: Callable[[Tensor], Tensor], x: Tensor, count: int) -> Tensor:
    """What ``function`` of batches of ``x`` [n, ...] owes to ``count`` of its n rows jointly, the others being zero.

    A polynomial has such a term if, and only if, products of these rows occur in it: of degree ``count`` or more.
    """
    present = torch.tensor(list(product((0, 1), repeat=count)), dtype=x.dtype)
    inputs = x.new_zeros(len(present), *x.shape)
    inputs[:, :count] = present.reshape(*present.shape, *[1] * (x.dim() - 1)) * x[:count]
    signs = (-1) ** (count - present.sum(dim=1))
    return torch.einsum("s,s...->...", signs, function(inputs))


def _executed_alone(model: nn.Module, sample: Batch) -> FlopCount:
    """What torch's counter sees of one sample when every op is a loop that pads nothing and masks nothing."""
    model.zero_grad()
    with ops_as_loops():
        with FlopCounterMode(display=False) as fwd:
            loss = bce(model(sample), sample)
        with FlopCounterMode(display=False) as bwd:
            loss.backward()
    return FlopCount(fwd.get_total_flops(), bwd.get_total_flops())
