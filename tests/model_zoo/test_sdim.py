"""SDIM: its FLOPs three ways, its sizes, and that its hashes collide and learn as the paper says."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfu_models.batch import EventSequence, SequenceField
from mfu_models.sdim.config import SdimConfig
from mfu_models.sdim.flops import components
from mfu_models.sdim.model import HashAttention, Sdim
from tests.model_zoo import zoo_checks
from tests.model_zoo.zoo_checks import AWKWARD, RECORDED

SDIM = MODELS["sdim"]
CONFIG = SdimConfig(
    AWKWARD, max_length=30, short_length=9, width=20, num_hashes=10, hash_bits=2, att_mlp=(11, 7), head_mlp=(8, 3)
)
SETTINGS = {
    "default": CONFIG,
    "no-l2": replace(CONFIG, l2_norm=False),
    "one-bit": replace(CONFIG, hash_bits=1),
    "tiny": SDIM.config("tiny"),
}
SAMPLES = ((0, 9), (5, 0), (0, 0), (9, 20), (1, 4), (2, 0))
in_every_setting = pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)


def sequence_of(lengths: list[int]) -> EventSequence:
    """A sequence of which only the lengths matter."""
    ids = torch.zeros(sum(lengths), dtype=torch.int64)
    return EventSequence(ids, ids[:, None], ids, torch.tensor([0, *lengths]).cumsum(0), max(lengths))


def matches(attention: HashAttention, event: Tensor, target: Tensor) -> list[bool]:
    """Whether each group of hashes agrees on two vectors."""
    signs = [[float(r @ x) >= 0 for r in attention.projection.T] for x in (event, target)]
    groups = [[s[i : i + attention.bits] for i in range(0, len(s), attention.bits)] for s in signs]
    return [a == b for a, b in zip(*groups, strict=True)]


@in_every_setting
def test_flops(config: SdimConfig) -> None:
    zoo_checks.check_flops(SDIM, config, zoo_checks.lengths_of(config, SAMPLES))


def test_flops_of_the_small_size() -> None:
    config = SDIM.config("small")
    zoo_checks.check_flops(SDIM, config, zoo_checks.lengths_of(config, [(0, 30), (16, 3), (2, 0)]))


@in_every_setting
def test_gradients(config: SdimConfig) -> None:
    zoo_checks.check_gradients(SDIM, config, zoo_checks.lengths_of(config, SAMPLES))


@in_every_setting
def test_a_sample_does_not_see_the_others(config: SdimConfig) -> None:
    zoo_checks.check_alone(SDIM, config, zoo_checks.lengths_of(config, SAMPLES))


@pytest.mark.parametrize("source", RECORDED)
def test_schemas_of_recorded_data(source: str) -> None:
    config = SDIM.config("tiny", RECORDED[source])
    names = config.long_history.name, config.short_history.name
    assert names == {"kuairand": ("events", "clicks"), "movielens": ("ratings", "liked")}[source]
    lengths = zoo_checks.lengths_of(config, [(0, 12, 5), (3, 0, 0)])
    zoo_checks.check_flops(SDIM, config, lengths)
    zoo_checks.check_gradients(SDIM, config, zoo_checks.lengths_of(config, [(3, 12, 15), (3, 9, 0)]))


def test_sequences_of_one_kind_are_told_apart() -> None:
    for kind in ("engagement", "exposure"):
        sequences = (SequenceField("a", kind), SequenceField("b", kind))
        config = replace(CONFIG, schema=replace(AWKWARD, sequences=sequences))
        assert {config.long_history.name, config.short_history.name} == {"a", "b"}


@pytest.mark.parametrize(
    ("size", "gflops", "dense_params"),
    [
        ("tiny", 0.00030, 0.029e6),
        ("small", 0.00309, 0.362e6),
        ("base", 0.040, 5.4e6),
        ("large", 0.665, 241.9e6),
        ("xl", 2.505, 952.8e6),
    ],
)
def test_sizes(size: str, gflops: float, dense_params: float) -> None:
    """The ladder adds the additions into buckets, one each, and has no dense features."""
    config = SDIM.config(size)
    events = SDIM.max_lengths(config)[config.long_history.name]
    added = events * config.width * config.num_hashes // config.hash_bits  # of each event, in a bucket of each group
    dense = 2 * 13 * config.head_mlp[0]
    decimals = {"tiny": 5, "small": 5}.get(size, 3)
    assert round((SDIM.full_length_flops(config).fwd + added - dense) / 1e9, decimals) == gflops
    zoo_checks.check_size(SDIM, config, gflops - added / 1e9, dense_params)


def test_backward_does_not_pay_for_hashing() -> None:
    lengths = zoo_checks.lengths_of(CONFIG, SAMPLES)
    flops, parts = SDIM.model_flops(CONFIG, lengths), components(CONFIG, lengths)
    assert parts["hash"] == 2 * (33 + 6) * 20 * 10
    assert flops.bwd == 2 * (flops.fwd - parts["hash"])


@pytest.mark.parametrize("bits", [1, 3])
def test_hashes_collide_as_often_as_the_paper_says(bits: int) -> None:
    """Rows of one event, each at another angle: the mean over groups is the event times the share of collisions."""
    num_groups = 500
    attention = HashAttention(replace(CONFIG, num_hashes=bits * num_groups, hash_bits=bits, l2_norm=False), "reference")
    plane = torch.linalg.qr(torch.randn(20, 2)).Q.T
    angles = torch.tensor([0.2, 0.7, 1.0, 1.5, 2.5])
    events = angles.cos()[:, None] * plane[0] + angles.sin()[:, None] * plane[1]
    targets = 3 * plane[0].expand(5, -1)
    shares = (attention(events, targets, sequence_of([1] * 5)) * events).sum(dim=1)
    expected = (1 - angles / math.pi) ** bits
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / num_groups).sqrt()).all()


@pytest.mark.parametrize("l2_norm", [True, False])
def test_attention_is_its_equations(l2_norm: bool) -> None:
    attention = HashAttention(replace(CONFIG, l2_norm=l2_norm), "reference")
    events, targets = torch.randn(7, 20), torch.randn(3, 20)
    expected = torch.zeros(3, 20)
    for b, row in enumerate((range(4), range(4, 4), range(4, 7))):
        for group in range(5):
            total = sum((events[j] for j in row if matches(attention, events[j], targets[b])[group]), torch.zeros(20))
            length = total.norm() if l2_norm and total.any() else 1.0
            expected[b] += total / length / 5
    torch.testing.assert_close(attention(events, targets, sequence_of([4, 0, 3])), expected)
    assert expected[0].any() and expected[2].any()


def test_gradients_flow_only_through_the_events_that_are_summed() -> None:
    attention = HashAttention(replace(CONFIG, l2_norm=False), "reference")
    events, target = torch.randn(6, 20).requires_grad_(), torch.randn(1, 20).requires_grad_()
    attention(events, target, sequence_of([6])).sum().backward()
    shares = torch.tensor([sum(matches(attention, event, target.detach()[0])) / 5 for event in events.detach()])
    assert target.grad is None
    assert list(attention.parameters()) == []
    assert events.grad is not None
    torch.testing.assert_close(events.grad, shares[:, None].expand(-1, 20))
    assert shares.count_nonzero() > 0


def test_the_model_joins_both_histories() -> None:
    model = zoo_checks.build(SDIM, CONFIG)
    assert isinstance(model, Sdim)
    batch = zoo_checks.batch_of(CONFIG, zoo_checks.lengths_of(CONFIG, SAMPLES))
    target = model.events(batch.candidate_items, batch.candidate_sides)
    views, clicks = (batch.sequences[name] for name in ("views", "clicks"))
    histories = [
        model.long(model.events.of(views), target, views),
        model.short(model.events.of(clicks), target, clicks),
    ]
    inputs = torch.cat([*histories, target, model.fields(batch.sparse).flatten(1), batch.dense], dim=1)
    torch.testing.assert_close(model(batch), model.head(inputs)[:, 0])


def test_hashes_are_saved_with_the_model() -> None:
    assert "long.projection" in zoo_checks.build(SDIM, CONFIG).state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 0}, "max_length=0; allowed: at least 1"),
        ({"short_length": 0}, "short_length=0; allowed: at least 1"),
        ({"hash_bits": 0}, "hash_bits=0; allowed: at least 1"),
        ({"hash_bits": 3}, "num_hashes=10; allowed: a multiple of hash_bits=3"),
        ({"num_hashes": 0}, "num_hashes=0; allowed: a multiple of hash_bits=2"),
        ({"att_mlp": ()}, r"att_mlp=\(\); allowed: one or more widths of at least 1"),
        ({"head_mlp": (8, 0)}, r"head_mlp=\(8, 0\); allowed: one or more widths of at least 1"),
        ({"width": 5}, "width=5; allowed: at least 6"),
        (
            {"schema": replace(AWKWARD, sequences=AWKWARD.sequences[:1])},
            "source test has 1 event sequences; sdim needs a short and a long one",
        ),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        replace(CONFIG, **change)
