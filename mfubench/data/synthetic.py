"""Batches of any schema drawn from the virtual log of ``synthetic_log``."""

from collections.abc import Mapping

import numpy as np
import torch

from mfu_models.batch import Batch, EventSequence, Schema
from mfubench.errors import BadInput

from .histories import Array, Ints, last_members, make_sequence, rows_where
from .source import ACTION_SIDE, check_request
from .synthetic_log import (
    CLICK_RATE,
    NUM_USERS,
    SPAN_MS,
    START_MS,
    VERSION,
    Floats,
    calibrate,
    draw_appeal,
    draw_gaps_ms,
    draw_impressions,
    draw_items,
    trait,
    user_bias,
    user_events,
)

EVENTS_AT_ONCE = 1 << 20  # bounds memory, and stays near the caches
SIDE_SALT, FIELD_SALT = 100, 200  # apart from each other and from the salts of the log's own traits


class SyntheticSource:
    """Draws requests uniformly from the virtual log's rows, and makes only the history that each of them needs.

    Each exposure sequence holds every event; the first engagement sequence holds the clicks, each further one a thinner
    part of the one before. The side called ``action`` is 1 plus the number of kinds of engagement that an event was,
    and 0 for the candidate. Other sides belong to the item, and so do the sparse fields at odd positions; those at even
    ones belong to the user. Dense features are noise. Requests of one user share tastes and a number of events, not the
    events themselves; all candidates of a request are drawn at the same moment.

    Raises:
        BadInput: a field's vocabulary is below 2, so that it holds nothing but the unknown id.
    """

    num_impressions: int | None = None

    def __init__(self, schema: Schema) -> None:
        for field in (*schema.sparse, schema.item, *schema.sides):
            if field.vocab < 2:
                raise BadInput(f"field {field.name!r} has a vocabulary of {field.vocab}; allowed: 2 or more")
        engagements = [sequence.name for sequence in schema.sequences if sequence.kind == "engagement"]
        self.schema = schema
        self.fingerprint = f"synthetic-{VERSION}"
        self.description = (
            f"synthetic log like KuaiRand-27K: {NUM_USERS:,} users, {user_events().sum():,} events, "
            f"click rate {CLICK_RATE}"
        )
        # The action that an event needs at least to be in a sequence: 1 for being shown, one more for each engagement.
        self._least_action = {sequence.name: 1 for sequence in schema.sequences}
        self._least_action |= {name: 2 + kind for kind, name in enumerate(engagements)}
        self._engagement = calibrate(schema.item.vocab, max(1, len(engagements)))

    def batches(
        self,
        batch_size: int,
        num_batches: int,
        *,
        seed: int,
        max_lengths: Mapping[str, int],
        num_candidates: int = 1,
    ) -> list[Batch]:
        """See ``Source.batches``."""
        check_request(self.schema, batch_size, num_batches, seed, max_lengths, num_candidates)
        generators = (np.random.default_rng([seed, i]) for i in range(num_batches))
        return [self._batch(generator, batch_size, max_lengths, num_candidates) for generator in generators]

    def _batch(self, rng: np.random.Generator, size: int, max_lengths: Mapping[str, int], num_candidates: int) -> Batch:
        users, positions = draw_impressions(rng, size)
        viewers = users.repeat(num_candidates)
        items = draw_items(rng, len(viewers), self.schema.item.vocab)
        clicked = draw_appeal(rng, viewers, items) + user_bias(viewers) > self._engagement.thresholds[0]
        times = (START_MS + (positions + rng.random(size)) * (SPAN_MS / user_events()[users])).astype(np.int64)
        return Batch(
            dense=torch.from_numpy(rng.standard_normal((len(viewers), len(self.schema.dense)), dtype=np.float32)),
            sparse=torch.from_numpy(self._sparse(viewers, items)),
            candidate_items=torch.from_numpy(items),
            candidate_sides=torch.from_numpy(self._sides(items, np.zeros_like(items))),
            times_ms=torch.from_numpy(times),
            labels=torch.from_numpy(clicked.astype(np.float32)),
            sequences=self._histories(rng, users, positions, times, max_lengths),
            num_candidates=num_candidates,
        )

    def _sparse(self, users: Ints, items: Ints) -> Ints:
        sparse = np.empty((len(users), len(self.schema.sparse)), dtype=np.int64)
        for j, field in enumerate(self.schema.sparse):
            sparse[:, j] = _attribute(items if j % 2 else users, FIELD_SALT + j, field.vocab)
        return sparse

    def _sides(self, items: Array, actions: Array) -> Ints:
        sides = np.empty((len(items), len(self.schema.sides)), dtype=np.int64)
        for j, side in enumerate(self.schema.sides):
            if side.name == ACTION_SIDE:
                sides[:, j] = np.minimum(actions, side.vocab - 1)
            else:
                sides[:, j] = _attribute(items, SIDE_SALT + j, side.vocab)
        return sides

    def _histories(
        self, rng: np.random.Generator, users: Ints, positions: Ints, times: Ints, max_lengths: Mapping[str, int]
    ) -> dict[str, EventSequence]:
        """The sequences, made for a few samples at a time."""
        names = [sequence.name for sequence in self.schema.sequences]
        counts = np.minimum(self._events_needed(users, max_lengths), positions)
        pieces = np.split(np.arange(len(users)), np.flatnonzero(np.diff(np.cumsum(counts) // EVENTS_AT_ONCE)) + 1)
        parts: dict[str, list[tuple[Array, Array, Array, Ints]]] = {name: [] for name in names}
        for piece in pieces:
            ends = np.cumsum(counts[piece])
            items, appeals, event_times = self._events(rng, users[piece], counts[piece], times[piece])
            actions = 1 + np.searchsorted(self._engagement.thresholds, appeals, side="left")
            for name in names:
                members = rows_where(actions >= self._least_action[name])
                rows, lengths = last_members(members, ends - counts[piece], ends, max_lengths[name])
                parts[name].append((items[rows], self._sides(items[rows], actions[rows]), event_times[rows], lengths))
        return {
            name: make_sequence(*(np.concatenate(column) for column in zip(*made, strict=True)))
            for name, made in parts.items()
        }

    def _events_needed(self, users: Ints, max_lengths: Mapping[str, int]) -> Ints:
        """How many of each user's latest events hold the wanted number of every sequence's events."""
        needed = np.zeros(len(users))
        for name, length in max_lengths.items():
            kind = self._least_action[name] - 2
            needed = np.maximum(needed, length if kind < 0 else self._engagement.events_needed(kind, users, length))
        return np.ceil(needed).astype(np.int64)

    def _events(self, rng: np.random.Generator, users: Ints, counts: Ints, times: Ints) -> tuple[Ints, Floats, Ints]:
        """The last ``counts`` events before each sample's time, oldest first: items, appeals with bias, times."""
        items = draw_items(rng, int(counts.sum()), self.schema.item.vocab)
        owners = np.repeat(users, counts)
        appeals = draw_appeal(rng, owners, items) + user_bias(owners)
        elapsed = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(draw_gaps_ms(rng, users, counts))])
        # An event precedes the impression by its own gap and all later ones of its sample.
        return items, appeals, np.repeat(times - elapsed[np.cumsum(counts)], counts) + elapsed[:-1]


def _attribute(ids: Array, salt: int, vocab: int) -> Ints:
    """A fixed id 1 .. vocab-1 for each of ``ids``."""
    return 1 + (trait(ids, salt).astype(np.float64) * (vocab - 1)).astype(np.int64)
