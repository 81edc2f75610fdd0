"""The tokens of DLRM and Wukong: what each holds, and that pooling a history loses its order and nothing else."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mfu_models.batch import Batch, EventSequence
from mfu_models.common.pooled_tokens import PooledTokens, num_pooled_tokens
from tests.model_zoo.request_checks import rows_of, token
from tests.model_zoo.zoo_checks import AWKWARD, random_batch

WIDTH = 11
LENGTHS = {"clicks": [0, 3, 5, 1], "views": [4, 0, 2, 7]}


@pytest.fixture
def batch() -> Batch:
    return random_batch(AWKWARD, LENGTHS)


@pytest.fixture
def tokens() -> PooledTokens:
    return PooledTokens(AWKWARD, WIDTH, (9,), impl="reference")


def with_history(batch: Batch, name: str, change: Callable[[EventSequence], EventSequence]) -> Batch:
    return replace(batch, sequences={**batch.sequences, name: change(batch.sequences[name])})


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_each_token_is_what_its_place_says(batch: Batch, pooling: str) -> None:
    tokens = PooledTokens(AWKWARD, WIDTH, (9,), pooling=pooling, impl="reference")
    x = tokens(batch)
    assert x.shape == (4, num_pooled_tokens(AWKWARD), WIDTH) == (4, 1 + 6 + 2, WIDTH)
    torch.testing.assert_close(x[:, 0], tokens.dense(batch.dense))
    fields = torch.stack([rows_of(tokens.fields, ids) for ids in batch.sparse])
    torch.testing.assert_close(x[:, 1:7], fields)
    for k, (name, lengths) in enumerate(LENGTHS.items()):
        events = embedded(tokens, batch.sequences[name]).split(lengths)
        sums = torch.stack([row.sum(dim=0) for row in events])
        divisors = torch.tensor(lengths).clamp(min=1)[:, None] if pooling == "mean" else 1
        torch.testing.assert_close(x[:, 7 + k], sums / divisors)


def embedded(tokens: PooledTokens, sequence: EventSequence) -> Tensor:
    ids = zip(sequence.item_ids, sequence.side_ids, strict=True)
    return torch.stack([token(tokens.events, item, sides) for item, sides in ids])


def test_the_order_and_the_times_of_events_do_not_matter(batch: Batch, tokens: PooledTokens) -> None:
    def reverse_rows(sequence: EventSequence) -> EventSequence:
        rows = torch.arange(sequence.item_ids.shape[0]).split(sequence.lengths())
        order = torch.cat([row.flip(0) for row in rows])
        items, sides = sequence.item_ids[order], sequence.side_ids[order]
        return replace(sequence, item_ids=items, side_ids=sides, times_ms=sequence.times_ms + 1)

    for name in LENGTHS:
        torch.testing.assert_close(tokens(with_history(batch, name, reverse_rows)), tokens(batch))


@pytest.mark.parametrize("name", LENGTHS)
def test_every_id_of_every_event_matters(batch: Batch, tokens: PooledTokens, name: str) -> None:
    before, sequence = tokens(batch), batch.sequences[name]
    rows = [row for row, length in enumerate(sequence.lengths()) for _ in range(length)]
    for event, row in enumerate(rows):
        for column in range(-1, len(AWKWARD.sides)):
            items, sides = sequence.item_ids.clone(), sequence.side_ids.clone()
            ids, vocab = (items, 50) if column < 0 else (sides[:, column], 7)
            ids[event] = (ids[event] + 1) % vocab
            changed = replace(sequence, item_ids=items, side_ids=sides)
            after = tokens(with_history(batch, name, lambda _, changed=changed: changed))
            differs = (after != before).any(dim=-1)
            place = 7 + list(LENGTHS).index(name)
            assert differs.nonzero().tolist() == [[row, place]]


def test_an_event_wider_than_its_ids_leaves_no_feature_out() -> None:
    """Widths that the ids do not divide go to the item."""
    for width in range(6, 14):
        events = PooledTokens(AWKWARD, width, (), impl="reference").events
        assert events.width == width
        assert events.tables[0].embedding_dim >= width / 2
