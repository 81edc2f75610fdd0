"""Other batches of the same requests hold the same requests."""

import torch

from mfu_models.batch import Batch, EventSequence
from mfubench.optimize.rows import bucketed, concatenate, select, with_empty_histories

LENGTHS = {"clicks": [[5, 0, 3], [1, 7, 2]], "shown": [[2, 2, 9], [0, 4, 1]]}
M = 2


def sequence(lengths: list[int], first: int) -> EventSequence:
    total = sum(lengths)
    ids = torch.arange(first, first + total)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return EventSequence(ids, torch.stack([ids, -ids], 1), 10 * ids, offsets, max(lengths))


def batches() -> list[Batch]:
    made = []
    for at in range(2):
        candidates = torch.arange(3 * M) + 100 * at
        made.append(
            Batch(
                dense=candidates[:, None].float(),
                sparse=candidates[:, None],
                candidate_items=candidates,
                candidate_sides=candidates[:, None],
                times_ms=torch.arange(3) + 1000 * at,
                labels=candidates.float() % 2,
                sequences={name: sequence(rows[at], 50 * at + 1) for name, rows in LENGTHS.items()},
                num_candidates=M,
            )
        )
    return made


def requests(batch: Batch) -> list[tuple[object, ...]]:
    """Everything that belongs to each request, to be compared whatever the order."""
    found = []
    for row in range(batch.num_requests):
        events = []
        for name, seq in batch.sequences.items():
            begin, end = int(seq.offsets[row]), int(seq.offsets[row + 1])
            assert seq.max_length >= end - begin
            events.append((name, seq.item_ids[begin:end].tolist(), seq.side_ids[begin:end].tolist()))
            events.append((name, seq.times_ms[begin:end].tolist()))
        own = slice(row * M, (row + 1) * M)
        per_candidate = (batch.dense, batch.sparse, batch.candidate_items, batch.candidate_sides, batch.labels)
        found.append((int(batch.times_ms[row]), events, *(tensor[own].tolist() for tensor in per_candidate)))
    return found


def test_concatenated_and_selected_requests_are_whole() -> None:
    a, b = batches()
    pool = concatenate([a, b])
    assert requests(pool) == requests(a) + requests(b)
    picked = select(pool, torch.tensor([4, 0]))
    assert requests(picked) == [requests(pool)[4], requests(pool)[0]]
    assert picked.sequences["clicks"].max_length == 7


def test_bucketing_sorts_by_length_and_loses_nothing() -> None:
    given = batches()
    found = bucketed(given)
    key = str
    assert sorted(requests(concatenate(found)), key=key) == sorted(requests(concatenate(given)), key=key)
    totals = [[sum(rows) for rows in zip(*batch.lengths().values(), strict=True)] for batch in found]
    assert totals == [[1, 2, 3], [7, 11, 12]]
    for batch in found:
        for sequence in batch.sequences.values():
            assert sequence.host_lengths is not None, "else a step waits for a GPU to know them"
            assert sequence.host_lengths.tolist() == sequence.offsets.diff().tolist()


def test_empty_histories_stand_first_in_the_middle_and_last() -> None:
    batch = concatenate([*batches(), *batches()])
    emptied = with_empty_histories(batch)
    lengths = emptied.lengths()
    assert [lengths[name][0] + lengths[name][5] + lengths[name][-1] for name in lengths] == [0, 0]
    assert any(lengths["clicks"][row] == 0 < lengths["shown"][row] for row in range(12))
    kept = [row for row in range(12) if lengths["shown"][row]]
    assert kept and all(lengths["shown"][row] == batch.lengths()["shown"][row] for row in kept)
    assert emptied.num_requests == batch.num_requests and torch.equal(emptied.labels, batch.labels)
