"""A batch of random ids with given lengths, where no data source is at hand."""

from collections.abc import Mapping, Sequence

import torch

from mfu_models.batch import Batch, EventSequence, Schema

_DAY_MS = 86_400_000


def random_batch(schema: Schema, lengths: Mapping[str, Sequence[int]], seed: int = 0, num_candidates: int = 1) -> Batch:
    """A Batch whose sequences have ``lengths`` (one row a request); ids uniform, times rising to the request's.

    Raises:
        ValueError: a sequence of the schema is missing or the sequences disagree about the number of samples.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = {len(lengths[field.name]) for field in schema.sequences}
    if len(counts) != 1:
        raise ValueError(f"every sequence needs one length a request; got rows {sorted(counts)}")
    num_requests = counts.pop()
    num_samples = num_requests * num_candidates

    def ids(vocab: int, *shape: int) -> torch.Tensor:
        return torch.randint(vocab, shape, generator=generator)

    def sequence(rows: Sequence[int]) -> EventSequence:
        total = sum(rows)
        age_ms = torch.cat(
            [torch.randint(1, _DAY_MS, (n,), generator=generator).sort(descending=True)[0] for n in rows]
        )
        return EventSequence(
            item_ids=ids(schema.item.vocab, total),
            side_ids=torch.stack([ids(side.vocab, total) for side in schema.sides], dim=1),
            times_ms=_DAY_MS * 19_000 - age_ms,
            offsets=torch.tensor([0, *rows]).cumsum(0),
            max_length=max(rows, default=0),
        )

    return Batch(
        dense=torch.randn(num_samples, len(schema.dense), generator=generator),
        sparse=torch.stack([ids(field.vocab, num_samples) for field in schema.sparse], dim=1),
        candidate_items=ids(schema.item.vocab, num_samples),
        candidate_sides=torch.stack([ids(side.vocab, num_samples) for side in schema.sides], dim=1),
        times_ms=torch.full((num_requests,), _DAY_MS * 19_000),
        labels=torch.randint(2, (num_samples,), generator=generator).float(),
        sequences={field.name: sequence(lengths[field.name]) for field in schema.sequences},
        num_candidates=num_candidates,
    )
