"""The synthetic log resembles the recorded one in what costs time: lengths, gaps, ids, rates."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from mfubench.data import Field, Schema, SequenceField
from mfubench.data.synthetic import SyntheticSource
from mfubench.data.synthetic_log import SPAN_MS, START_MS, draw_gaps_ms, draw_items, user_events
from mfubench.errors import BadInput

LENGTHS = {"clicks": 64, "long_views": 48, "shown": 128}


def schema(item_vocab: int = 100_000, action_vocab: int = 16) -> Schema:
    return Schema(
        source="synthetic",
        dense=("a", "b", "c"),
        sparse=tuple(Field(f"sparse_{i}", 1_000) for i in range(5)),
        item=Field("item", item_vocab),
        sides=(Field("category", 200), Field("action", action_vocab)),
        sequences=(
            SequenceField("clicks", "engagement"),
            SequenceField("long_views", "engagement"),
            SequenceField("shown", "exposure"),
        ),
        target="is_click",
    )


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(schema())


def test_users_have_as_many_events_as_recorded() -> None:
    counts = user_events()
    assert len(counts) == 27_285 and counts.min() == 100 and counts.max() == 228_000
    assert np.median(counts) == pytest.approx(8_594, rel=0.02)
    assert np.quantile(counts, 0.9) == pytest.approx(24_587, rel=0.03)
    assert counts.sum() == pytest.approx(322_278_385, rel=0.02)  # not fitted: it follows


@pytest.mark.parametrize("item_vocab", [2, 50, 1_000, 100_000, 32_000_000])
def test_click_rate_at_any_vocabulary(item_vocab: int) -> None:
    labels = (
        SyntheticSource(schema(item_vocab)).batches(16_384, 1, seed=0, max_lengths=dict.fromkeys(LENGTHS, 1))[0].labels
    )
    assert labels.mean().item() == pytest.approx(0.379, abs=0.015)
    assert set(labels.tolist()) == {0.0, 1.0}


def test_engagement_rates_within_exposures(source: SyntheticSource) -> None:
    batch = source.batches(2_048, 1, seed=1, max_lengths=LENGTHS)[0]
    actions = batch.sequences["shown"].side_ids[:, 1]
    assert (actions >= 2).float().mean().item() == pytest.approx(0.379, abs=0.015)
    assert (actions >= 3).float().mean().item() == pytest.approx(0.266, abs=0.015)
    assert (
        batch.sequences["clicks"].side_ids[:, 1].min() == 2 and batch.sequences["long_views"].side_ids[:, 1].min() == 3
    )


def test_sequences_are_of_one_history(source: SyntheticSource) -> None:
    """Long views are clicks, clicks were shown: where the windows overlap, one contains the other."""
    batch = source.batches(200, 1, seed=2, max_lengths=LENGTHS)[0]
    shown, clicks, long_views = (batch.sequences[name] for name in ("shown", "clicks", "long_views"))
    for i in range(batch.num_requests):
        (s0, s1), (c0, c1), (v0, v1) = (q.offsets[i : i + 2].tolist() for q in (shown, clicks, long_views))
        clicked = shown.side_ids[s0:s1, 1] >= 2
        recent = clicks.times_ms[c0:c1][-int(clicked.sum()) or c1 :]
        assert torch.equal(shown.times_ms[s0:s1][clicked][-len(recent) or s1 :], recent)
        viewed = clicks.side_ids[c0:c1, 1] >= 3
        both = min(int(viewed.sum()), v1 - v0)
        assert torch.equal(
            clicks.item_ids[c0:c1][viewed][int(viewed.sum()) - both :], long_views.item_ids[v1 - both : v1]
        )


def test_times_ascend_to_the_impression_and_span_the_log(source: SyntheticSource) -> None:
    batch = source.batches(512, 1, seed=3, max_lengths=LENGTHS)[0]
    for sequence in batch.sequences.values():
        for i in range(batch.num_requests):
            start, stop = sequence.offsets[i : i + 2].tolist()
            times = [*sequence.times_ms[start:stop].tolist(), batch.times_ms[i].item()]
            assert all(a < b for a, b in pairwise(times))
    gaps = draw_gaps_ms(np.random.default_rng(0), np.arange(300), user_events()[:300])
    users = np.repeat(np.arange(300), user_events()[:300])
    assert gaps.min() >= 1
    assert np.median(np.bincount(users, gaps)) == pytest.approx(SPAN_MS, rel=0.05)
    assert np.median(gaps) < 30_000 and (gaps > 3_600_000).mean() > 0.005  # watching, and hours between sessions


def test_lengths_are_full_unless_the_user_is_new(source: SyntheticSource) -> None:
    """A row of the recorded log has fewer than 128 before it with probability 128 / 11,796."""
    lengths = source.batches(8_192, 1, seed=4, max_lengths=LENGTHS)[0].lengths()
    for name, length in LENGTHS.items():
        assert max(lengths[name]) == length
    assert np.mean(np.array(lengths["shown"]) < 128) == pytest.approx(128 / 11_796, abs=0.005)
    assert np.mean(np.array(lengths["clicks"]) < 64) == pytest.approx(64 / 0.379 / 11_796, abs=0.006)


def test_ids_are_within_the_schema_and_never_unknown(source: SyntheticSource) -> None:
    batch = source.batches(512, 1, seed=5, max_lengths=LENGTHS)[0]
    assert batch.dense.shape == (512, 3) and batch.dense.dtype == torch.float32
    assert batch.sparse.shape == (512, 5) and batch.sparse.min() >= 1 and batch.sparse.max() <= 999
    assert batch.candidate_sides[:, 0].min() >= 1 and batch.candidate_sides[:, 1].max() == 0
    for sequence in batch.sequences.values():
        assert sequence.item_ids.min() >= 1 and sequence.item_ids.max() < 100_000
        assert sequence.side_ids.min() >= 1 and (sequence.side_ids.amax(dim=0) < torch.tensor([200, 16])).all()
        assert sequence.item_ids.dtype == sequence.times_ms.dtype == sequence.offsets.dtype == torch.int64


def test_item_popularity_follows_zipf_with_an_offset() -> None:
    shown = np.bincount(draw_items(np.random.default_rng(0), 1_000_000, 100_000), minlength=100_000)
    assert shown[0] == 0 and shown[1] > shown[100] > shown[10_000]
    assert shown[1:6].sum() / shown[98:103].sum() == pytest.approx(3.1, rel=0.15)
    assert draw_items(np.random.default_rng(0), 1_000, 2).tolist() == [1] * 1_000


def test_a_small_action_vocabulary_is_respected() -> None:
    batch = SyntheticSource(schema(action_vocab=2)).batches(64, 1, seed=0, max_lengths=LENGTHS)[0]
    assert set(batch.sequences["shown"].side_ids[:, 1].tolist()) == {1}


def test_history_and_ids_tell_about_the_label(source: SyntheticSource) -> None:
    """There is something to learn: users who clicked more in the past click more now."""
    batch = source.batches(8_192, 1, seed=6, max_lengths=LENGTHS)[0]
    shown = batch.sequences["shown"]
    owners = torch.repeat_interleave(torch.arange(8_192), shown.offsets.diff())
    clicks = torch.zeros(8_192).index_add_(0, owners, (shown.side_ids[:, 1] >= 2).float())
    rate = clicks / shown.offsets.diff().clamp(min=1)
    eager = rate > rate.median()
    assert batch.labels[eager].mean() - batch.labels[~eager].mean() > 0.08


def test_a_seed_gives_the_same_batches(source: SyntheticSource) -> None:
    one, two = (source.batches(32, n, seed=7, max_lengths=LENGTHS)[0] for n in (1, 3))
    other = source.batches(32, 1, seed=8, max_lengths=LENGTHS)[0]
    assert torch.equal(one.dense, two.dense) and torch.equal(one.labels, two.labels)
    assert all(torch.equal(one.sequences[n].times_ms, two.sequences[n].times_ms) for n in LENGTHS)
    assert not torch.equal(one.candidate_items, other.candidate_items)


def test_what_a_seed_gives_changes_only_with_the_version(source: SyntheticSource) -> None:
    """Runs are compared by the fingerprint: whoever changes these numbers must raise VERSION."""
    batch = source.batches(256, 1, seed=9, max_lengths=LENGTHS)[0]
    assert source.fingerprint == "synthetic-1"
    sums = [int(batch.labels.sum()), *(sum(lengths) for lengths in batch.lengths().values())]
    assert sums == [99, 16_300, 12_217, 32_685]
    shown = batch.sequences["shown"]
    means = [shown.item_ids.double().mean().item(), shown.times_ms.double().mean().item() - START_MS]
    # Not to the last digit, which exp() gives differently on different processors.
    assert means == pytest.approx([12_997.699433, 1_328_079_423.28], rel=1e-6)


def test_a_large_batch_takes_about_a_second() -> None:
    large = SyntheticSource(schema(1_000_000))
    started = time.process_time()
    large.batches(1_024, 1, seed=0, max_lengths={"clicks": 1_024, "long_views": 1, "shown": 1_024})
    assert time.process_time() - started < 4  # 0.5 s on one core of an idle machine


def test_a_schema_without_ids_is_refused() -> None:
    with pytest.raises(BadInput, match="field 'item' has a vocabulary of 1; allowed: 2 or more"):
        SyntheticSource(schema(item_vocab=1))
