"""Other batches of the same requests: in another order, or with histories that are empty."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mfu_models.batch import Batch, EventSequence


def bucketed(batches: Sequence[Batch]) -> list[Batch]:
    """The requests of all ``batches``, in as many batches of as many requests, those of like length together.

    Length is that of all histories of a request. Ties keep their order.
    """
    pool = concatenate(batches)
    total = torch.stack([sequence.offsets.diff() for sequence in pool.sequences.values()]).sum(0)
    order = torch.sort(total, stable=True).indices
    sizes = [batch.num_requests for batch in batches]
    return [select(pool, rows) for rows in order.split(sizes)]


def concatenate(batches: Sequence[Batch]) -> Batch:
    """All requests of ``batches``, which have as many candidates each, as one batch."""
    first = batches[0]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(batch, name) for batch in batches])

    sequences = {name: _join([batch.sequences[name] for batch in batches]) for name in first.sequences}
    per_candidate: dict[str, Any] = {name: joined(name) for name in _PER_CANDIDATE}
    return replace(first, times_ms=joined("times_ms"), sequences=sequences, **per_candidate)


def select(batch: Batch, rows: Tensor) -> Batch:
    """The requests ``rows``, int64 [N], of ``batch``, in that order."""
    m = batch.num_candidates
    candidates = (rows[:, None] * m + torch.arange(m, device=rows.device)).flatten()
    per_candidate: dict[str, Any] = {name: getattr(batch, name)[candidates] for name in _PER_CANDIDATE}
    sequences = {name: _select(sequence, rows) for name, sequence in batch.sequences.items()}
    return replace(batch, times_ms=batch.times_ms[rows], sequences=sequences, **per_candidate)


def with_empty_histories(batch: Batch) -> Batch:
    """``batch`` with the first, a middle and the last request's histories empty, and every second one's first history.

    What breaks kernels on empty rows breaks them where a row begins the batch, ends it, or has neighbours.
    """
    last = batch.num_requests - 1
    empty = torch.zeros(batch.num_requests, dtype=torch.bool, device=batch.times_ms.device)
    empty[[0, last // 2, last]] = True
    emptied = {}
    for place, (name, sequence) in enumerate(batch.sequences.items()):
        also = empty.clone()
        also[1::2] |= place == 0
        emptied[name] = _without_events(sequence, also)
    return replace(batch, sequences=emptied)


_PER_CANDIDATE = ("dense", "sparse", "candidate_items", "candidate_sides", "labels")


def _join(parts: Sequence[EventSequence]) -> EventSequence:
    lengths = torch.cat([part.offsets.diff() for part in parts])
    return _sequence(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("item_ids", "side_ids", "times_ms")),
        lengths=lengths,
    )


def _select(sequence: EventSequence, rows: Tensor) -> EventSequence:
    lengths = sequence.offsets.diff()[rows]
    begins = torch.repeat_interleave(sequence.offsets[rows], lengths)
    within = torch.arange(begins.shape[0], device=rows.device) - torch.repeat_interleave(
        lengths.cumsum(0) - lengths, lengths
    )
    events = begins + within
    return _sequence(sequence.item_ids[events], sequence.side_ids[events], sequence.times_ms[events], lengths=lengths)


def _without_events(sequence: EventSequence, empty: Tensor) -> EventSequence:
    lengths = sequence.offsets.diff()
    kept = torch.repeat_interleave(~empty, lengths)
    return _sequence(
        sequence.item_ids[kept], sequence.side_ids[kept], sequence.times_ms[kept], lengths=lengths.masked_fill(empty, 0)
    )


def _sequence(item_ids: Tensor, side_ids: Tensor, times_ms: Tensor, *, lengths: Tensor) -> EventSequence:
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    known = lengths.numpy() if lengths.device.type == "cpu" else None
    return EventSequence(item_ids, side_ids, times_ms, offsets, int(lengths.max()), known)
