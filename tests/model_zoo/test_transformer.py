"""Each mechanism of the transformer is there: a test fails when it is taken out or done otherwise."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_models.batch import Batch
from mfu_models.common.layers import JaggedSelfAttention
from mfu_models.transformer.model import EncoderLayer
from tests.kernels import oracles
from tests.kernels.cases import offsets_of
from tests.model_zoo.settings import TRANSFORMER, batch_of, built
from tests.model_zoo.watching import SAMPLES, assert_close, assert_differ, change, influence, moved, scores, watch

pytestmark = pytest.mark.usefixtures("in_fp64")


def encoded(config: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Tokens of history and of candidates after the last encoder layer, by sample as in the batch."""
    ((_, tokens),) = watch(built(config), batch)[f"layers.{config.num_layers - 1}"]
    candidate = batch.sequences["views"].offsets[1:] + torch.arange(batch.num_requests)
    is_history = torch.ones(len(tokens), dtype=torch.bool)
    is_history[candidate] = False
    return tokens[is_history], tokens[candidate]


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("causal", [False, True])
def test_history_and_candidate_attend_to_each_other(order: str, causal: bool) -> None:
    """The candidate would not see the history; or history would not see the candidate, or would where it must not."""
    config = replace(TRANSFORMER, norm_order=order, causal=causal)
    batch = batch_of(config, [(0, 4), (0, 0), (0, 6)])
    history, candidates = encoded(config, batch)
    _, seeing = encoded(config, change(batch, "views", item_ids=(batch.sequences["views"].item_ids + 1) % 50))
    assert moved(candidates, seeing) == [True, False, True]
    seen, other = encoded(config, replace(batch, candidate_items=(batch.candidate_items + 1) % 50))
    assert_differ(other, candidates)
    assert moved(history, seen) == [not causal] * 10


def test_the_candidate_reaches_the_score() -> None:
    """The item to be scored, or one of its side ids, would be read by nothing."""
    model, batch = built(TRANSFORMER), batch_of(TRANSFORMER, SAMPLES)
    others = [replace(batch, candidate_items=(batch.candidate_items + 1) % 50)]
    for side in range(len(TRANSFORMER.schema.sides)):
        ids = batch.candidate_sides.clone()
        ids[:, side] = (ids[:, side] + 1) % 7
        others.append(replace(batch, candidate_sides=ids))
    for other in others:
        assert moved(scores(model, batch), scores(model, other)) == [True] * len(SAMPLES)


def test_causal_history_sees_only_what_came_before() -> None:
    """SASRec's mask would look ahead, or not back."""
    attention = JaggedSelfAttention(8, 2, window=None, causal=True, impl="reference")
    seen = influence(lambda x: attention(x, offsets_of([3, 2]), 3), torch.randn(5, 8))
    assert torch.equal(seen, torch.block_diag(torch.ones(3, 3).tril(), torch.ones(2, 2).tril()).bool())


@pytest.mark.parametrize("order", ["post", "pre"])
def test_norms_come_after_or_before(order: str) -> None:
    """A residual or a norm would be missing, or stand where the other order has it."""
    layer = EncoderLayer(replace(TRANSFORMER, norm_order=order), "reference")
    z, norm = torch.randn(5, TRANSFORMER.width), oracles.layer_norm

    def attend(tokens: Tensor) -> Tensor:
        return layer.attention(tokens, offsets_of([3, 2]), 3)

    if order == "post":
        middle = norm(z + attend(z))
        expected = norm(middle + layer.ffn(middle))
    else:
        middle = z + attend(norm(z))
        expected = middle + layer.ffn(norm(middle))
    assert_close(layer(z, offsets_of([3, 2]), 3), expected)


@pytest.mark.parametrize("order", ["post", "pre"])
def test_the_head_reads_candidate_mean_history_and_context(order: str) -> None:
    """Pooling other than the mean, or over the candidate too; pre-norm's layers with no norm after the last.

    A history without events is all zeros.
    """
    config = replace(TRANSFORMER, norm_order=order)
    batch, d = batch_of(config, SAMPLES), config.width
    model = built(config)
    ((head_input,), _) = watch(model, batch)["head"][0]
    history, candidates = encoded(config, batch)
    if order == "pre":
        history, candidates = oracles.layer_norm(history), oracles.layer_norm(candidates)
    means = [rows.mean(dim=0) if len(rows) else torch.zeros(d) for rows in history.split([v for _, v in SAMPLES])]
    context = torch.cat([model.dense(batch.dense)[:, None], model.fields(batch.sparse)], dim=1).flatten(1)
    assert_close(head_input, torch.cat([candidates, torch.stack(means), context], dim=1))


def test_positions_count_back_from_the_candidate() -> None:
    """The latest event would have another position in a short history than in a long one."""
    calls = watch(built(TRANSFORMER), batch_of(TRANSFORMER, [(0, 0), (0, 3), (0, 1)]))
    ((positions,), _) = calls["position"][0]
    assert positions.tolist() == [3, 2, 1, 1, 0, 0, 0]  # the events, then the candidates


def test_a_history_longer_than_the_table_keeps_its_last_position() -> None:
    """Positions beyond the table would be an error on the device, far from its cause."""
    calls = watch(built(TRANSFORMER), batch_of(TRANSFORMER, [(0, 8)]))
    ((positions,), _) = calls["position"][0]
    assert positions.tolist() == [6, 6, 6, 5, 4, 3, 2, 1, 0]


def test_the_order_of_history_counts() -> None:
    """Without positions a history would be a bag of events."""
    batch = batch_of(TRANSFORMER, [(0, 6)])
    events = batch.sequences["views"]
    back = change(batch, "views", item_ids=events.item_ids.flip(0), side_ids=events.side_ids.flip(0))
    assert_differ(encoded(TRANSFORMER, back)[1], encoded(TRANSFORMER, batch)[1])


def test_positions_are_as_small_as_what_they_are_added_to() -> None:
    """Drawn with a variance of 1, they are nearly all of a token, and histories in another order score the same."""
    model = built(replace(TRANSFORMER, max_length=200))
    assert model.position.weight.std().item() == pytest.approx(TRANSFORMER.width**-0.5, rel=0.1)
