"""Settings of the zoo's models that the tests share: every switch alone, every pair of switches, awkward lengths."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfu_kernels import ACTIVATIONS
from mfu_models import MODELS, ModelSpec
from mfu_models.batch import Batch, EventSequence, Field, Schema, SequenceField
from mfu_models.kunlun.config import KunlunConfig, Tower
from mfu_models.output import TrainingOutput
from mfu_models.transformer.config import TransformerConfig
from tests.model_zoo.random_batch import random_batch

CLICKS, VIEWS = SequenceField("clicks", "engagement"), SequenceField("views", "exposure")


def schema_with(*sequences: SequenceField, num_sides: int = 3) -> Schema:
    """A schema whose counts of features differ from each other and from every width below."""
    return Schema(
        source="test",
        dense=tuple("abcde"),
        sparse=tuple(Field(f"field_{i}", 11) for i in range(6)),
        item=Field("item", 50),
        sides=tuple(Field(f"side_{i}", 7) for i in range(num_sides)),
        sequences=sequences,
        target="is_click",
    )


# No two dimensions are alike where the architecture allows it, so that a formula which takes one for another is wrong.
# The click tower has the model's width and ends with the model; the view tower is narrower and ends before it.
KUNLUN = KunlunConfig(
    schema_with(CLICKS, VIEWS),
    width=20,
    num_layers=3,
    num_summary=4,
    kv_width=7,
    num_experts=2,
    fm_rank=5,
    expert_mlp=(13, 6),
    head_mlp=(9, 8),
    engagement=Tower(max_length=7, width=20, num_heads=2, num_tokens=3, num_layers=3, window=2),
    exposure=Tower(max_length=6, width=12, num_heads=3, num_tokens=2, num_layers=2, window=3),
    seeds_per_token=4,
    kron_rank=3,
)
TRANSFORMER = TransformerConfig(
    schema_with(CLICKS, VIEWS), max_length=6, width=24, num_layers=2, num_heads=4, expansion=3, head_mlp=(9, 8)
)
BASES: Mapping[str, Any] = {"kunlun": KUNLUN, "transformer": TRANSFORMER}
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "kunlun": {
        "towers": False,
        "ffn": "pffn",
        "pooling": "pma",
        "attention": "full",
        "comp_skip": False,
        "event_personalization": False,
        "interaction_experts": False,
        "rote": False,
        "qo_proj": True,
        "summary_gate": True,
        "gdpa_scale": "max_length",
        "rote_gap": "request",
        "activation": "silu",
    },
    "transformer": {"norm_order": "pre", "causal": True},
}
# (clicks, views) of each sample.
MIXED = ((0, 4), (7, 0), (0, 4), (7, 0))  # rows of no events first, amid and last
BATCHES = (
    MIXED,
    ((1, 2), (2, 3), (3, 4), (7, 6)),  # one less than the window, just it, one more, as long as allowed
    ((0, 0), (0, 0)),
    ((1, 0),),
)


def name_of(config: Any) -> str:
    """The model that ``config`` is of."""
    return next(name for name, base in BASES.items() if type(base) is type(config))


def spec_of(config: Any) -> ModelSpec:
    """The spec of the model that ``config`` is of."""
    return MODELS[name_of(config)]


def pairwise_changes(switches: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The default, each switch alone, and six settings in which every two switches take all their combinations.

    Each switch is on in four of the six, and no two in the same four: so any two are both on in at least two of the
    six, each is on without the other in at least one, and both are off in the default.
    """
    yield {}
    for name, value in switches.items():
        yield {name: value}
    fours = dict(zip(switches, combinations(range(6), 4), strict=False))
    for row in range(6):
        yield {name: value for name, value in switches.items() if row in fours[name]}


def settings(*bases: Any, activations: bool = False) -> list[Any]:
    """Each config of ``bases`` in every switch setting, as pytest parameters."""
    found = {}
    for base in bases:
        name = name_of(base)
        changes = list(pairwise_changes(SWITCHES[name]))
        if activations and name == "kunlun":
            changes += [{"activation": activation} for activation in ACTIVATIONS]
        for change in changes:
            label = "+".join(f"{key}={value}" for key, value in change.items()) or "default"
            found[replace(base, **change)] = f"{name}-d{base.width}-{label}"
    return [pytest.param(config, id=label) for config, label in found.items()]


in_every_setting = pytest.mark.parametrize("config", settings(*BASES.values()))


def built(config: Any) -> nn.Module:
    """The model in torch's default dtype, with the plain implementation of every op and the same weights at each call.

    Models are shared between tests: leave them as they are.
    """
    return _built(config, torch.get_default_dtype())


@cache
def _built(config: Any, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    return spec_of(config).build(config, "reference").to(dtype)


def lengths_of(config: Any, samples: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    """Lengths by sequence, from each sample's lengths in the schema's order."""
    rows = zip(*samples, strict=True)
    return {sequence.name: list(row) for sequence, row in zip(config.schema.sequences, rows, strict=True)}


def batch_of(config: Any, samples: Sequence[Sequence[int]], seed: int = 0) -> Batch:
    """A random batch of samples with these lengths."""
    return random_batch(config.schema, lengths_of(config, samples), seed)


def take(batch: Batch, samples: Sequence[int]) -> Batch:
    """The batch of these samples (requests, with all their candidates) of ``batch``, in this order."""
    picked, m = list(samples), batch.num_candidates
    candidates = [b * m + i for b in picked for i in range(m)]

    def rows(sequence: EventSequence) -> EventSequence:
        bounds = sequence.offsets.tolist()
        index = torch.tensor([i for b in picked for i in range(bounds[b], bounds[b + 1])], dtype=torch.int64)
        lengths = [bounds[b + 1] - bounds[b] for b in picked]
        events = (sequence.item_ids[index], sequence.side_ids[index], sequence.times_ms[index])
        return EventSequence(*events, torch.tensor([0, *lengths]).cumsum(0), max(lengths))

    return Batch(
        dense=batch.dense[candidates],
        sparse=batch.sparse[candidates],
        candidate_items=batch.candidate_items[candidates],
        candidate_sides=batch.candidate_sides[candidates],
        times_ms=batch.times_ms[picked],
        labels=batch.labels[candidates],
        sequences={name: rows(sequence) for name, sequence in batch.sequences.items()},
        num_candidates=m,
    )


def bce(output: Tensor | TrainingOutput, batch: Batch) -> Tensor:
    """The loss that the zoo's models train on."""
    if isinstance(output, TrainingOutput):
        return bce(output.logits, batch) + output.auxiliary_loss
    return nn.functional.binary_cross_entropy_with_logits(output, batch.labels.to(output.dtype))
