"""Batches drawn from a recorded event log; what KuaiRand and MovieLens have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from mfu_models.batch import Batch, Field, Schema, SequenceField
from mfubench.errors import BadInput

from .histories import Array, EventLog, Ints, Windows
from .source import check_request

VERSION = 3  # of what rows of a log become; part of its fingerprint, to be raised with any change of it
MOMENT_ROWS = 1 << 16  # impressions that tell the moments of the dense features
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
THURSDAY = 3  # the weekday of the Unix epoch, Monday being 0

Floats = npt.NDArray[np.float64]


def log_schema(
    source: str,
    user: Field,
    item: Field,
    sides: tuple[Field, Field],
    sequences: Sequence[SequenceField],
    target: str,
    context: tuple[Field, ...] = (),
) -> Schema:
    """The schema of a ``LogSource``: ``sides`` are a property of the item and the action, ``context`` own fields."""
    counts = tuple(f"log1p_past_{sequence.name}" for sequence in sequences)
    return Schema(
        source=source,
        dense=(*counts, "past_positive_rate", "log1p_seconds_since_last_event"),
        sparse=(user, item, Field("hour", 25), Field("weekday", 8), sides[0], *context),
        item=item,
        sides=sides,
        sequences=tuple(sequences),
        target=target,
    )


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of each dense feature: float64 [num_dense] each."""

    mean: Floats
    deviation: Floats

    @staticmethod
    def of(features: Floats) -> "Moments":
        """Those of ``features`` [N, num_dense], N at least 1; what never changes is only brought to 0."""
        deviation = features.std(axis=0)
        return Moments(features.mean(axis=0), np.where(deviation > 1e-6, deviation, 1.0))


@dataclass(frozen=True, slots=True)
class LogSource:
    """A log whose ``targets`` rows, ascending, are impressions; requests are drawn uniformly and with replacement.

    A request is a target and the next ones of the same user, as many as it has candidates. It is made at its first
    candidate's time, and all that is known of the user and the moment is known at that time: dense features count only
    what is strictly before it, and with no past event the rate and the recency are 0; then they are standardised by
    ``moments``, if it has them. A target's label is 1 if its row belongs to the sequence ``positives``; ``shown`` names
    the sequences that make up all past targets, each target in one of them. Hours and weekdays are local: UTC +
    ``utc_offset_hours``. ``context`` holds the ids, by row, of each context field given to ``log_schema``.
    """

    schema: Schema
    description: str
    fingerprint: str
    log: EventLog
    targets: Array
    positives: str
    shown: tuple[str, ...]
    utc_offset_hours: int
    context: tuple[Array, ...] = ()
    moments: Moments | None = None

    def standardised(self) -> "LogSource":
        """The same source, whose dense features have mean 0 and deviation 1 over its impressions.

        Logarithms of counts lie around 5 and embeddings around 0: as they are, the former drown the latter in a sum.
        Many impressions are represented by ``MOMENT_ROWS`` of them, evenly spread.
        """
        rows = self.targets[:: -(-len(self.targets) // MOMENT_ROWS) or 1].astype(np.int64)
        return replace(self, moments=Moments.of(self._features(*self._past(rows)))) if len(rows) else self

    @property
    def num_impressions(self) -> int:
        """See ``Source.num_impressions``."""
        return len(self.targets)

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
        windows = self._windows(num_candidates)
        generators = (np.random.default_rng([seed, i]) for i in range(num_batches))
        starts = (windows.draw(generator, batch_size) for generator in generators)
        places = (np.add.outer(start, np.arange(num_candidates)).ravel() for start in starts)
        return [self.batch(self.targets[place], max_lengths, num_candidates) for place in places]

    def _windows(self, size: int) -> Windows:
        """The runs of ``size`` successive targets that are one user's.

        Raises:
            BadInput: no user has so many targets.
        """
        begins = np.searchsorted(self.targets, self.log.user_begins().astype(self.targets.dtype))
        windows = Windows.of(begins, size)
        if not windows.ends[-1]:
            most = int(np.diff(begins).max())
            raise BadInput(f"num_candidates={size}; allowed: 1 to {most}, the most impressions of one user here")
        return windows

    def batch(self, rows: Array, max_lengths: Mapping[str, int], num_candidates: int = 1) -> Batch:
        """The batch whose impressions are these rows of the log, each ``num_candidates`` in succession one request.

        A request's rows must be of one user, in the order of the log.
        """
        rows = rows.astype(np.int64)
        requests = rows[::num_candidates]
        times, first, end = self._past(requests)
        candidate_sides = np.stack([self.log.sides[rows, 0], np.zeros_like(rows)], axis=1).astype(np.int64)
        items = self.log.items[rows].astype(np.int64)
        return Batch(
            dense=torch.from_numpy(self._dense(times, first, end).repeat(num_candidates, axis=0)),
            sparse=torch.from_numpy(self._sparse(rows, requests.repeat(num_candidates))),
            candidate_items=torch.from_numpy(items),
            candidate_sides=torch.from_numpy(candidate_sides),
            times_ms=torch.from_numpy(times),
            labels=torch.from_numpy(self.labels(rows)),
            sequences={
                sequence.name: self.log.history(sequence.name, first, end, max_lengths[sequence.name])
                for sequence in self.schema.sequences
            },
            num_candidates=num_candidates,
        )

    def labels(self, rows: Array) -> npt.NDArray[np.float32]:
        """The label of each of these rows: float32."""
        rows = rows.astype(np.int64)
        return self.log.count(self.positives, rows, rows + 1).astype(np.float32)

    def _past(self, requests: Ints) -> tuple[Ints, Ints, Ints]:
        """When each of these rows was shown, and the range of its user's events before it."""
        return self.log.times_ms(requests), *self.log.before(requests)

    def _dense(self, times: Ints, first: Ints, end: Ints) -> npt.NDArray[np.float32]:
        features = self._features(times, first, end)
        if self.moments is not None:
            features = (features - self.moments.mean) / self.moments.deviation
        return features.astype(np.float32)

    def _features(self, times: Ints, first: Ints, end: Ints) -> Floats:
        """The dense features as they are: float64 [N, num_dense]."""
        past = {sequence.name: self.log.count(sequence.name, first, end) for sequence in self.schema.sequences}
        targets = sum((past[name] for name in self.shown), start=np.zeros_like(first))
        rate = past[self.positives] / np.maximum(targets, 1)
        elapsed_ms = np.where(end > first, times - self.log.times_ms(np.maximum(end - 1, 0)), 0)
        columns = [*(np.log1p(count) for count in past.values()), rate, np.log1p(elapsed_ms / 1000)]
        features: Floats = np.stack(columns, axis=1)
        return features

    def _sparse(self, rows: Ints, requests: Ints) -> Ints:
        """Item and side of each of ``rows``; user, moment and context of ``requests``, the first row of its request."""
        local = self.log.times_ms(requests) + self.utc_offset_hours * HOUR_MS
        hour, weekday = local // HOUR_MS % 24 + 1, (local // DAY_MS + THURSDAY) % 7 + 1
        known = [self.log.users(requests), self.log.items[rows], hour, weekday, self.log.sides[rows, 0]]
        return np.stack([*known, *(column[requests] for column in self.context)], axis=1).astype(np.int64)

    def split_by_time(self, train_share: float) -> "tuple[LogSource, LogSource]":
        """Two sources over the same log: impressions of the first ``train_share`` of them in time, and the later ones.

        The dense features of both are standardised by what is known of the first.

        Raises:
            BadInput: a share outside (0, 1), or one that leaves a side empty.
        """
        times = self.log.times_ms(self.targets)
        if not 0 < train_share < 1 or (late := times > np.quantile(times, train_share)).all() or not late.any():
            raise BadInput(f"train_share={train_share} leaves a side empty; allowed: between 0 and 1")
        name = self.fingerprint
        first = replace(self, targets=self.targets[~late], fingerprint=f"{name}-first-{train_share}").standardised()
        return first, replace(first, targets=self.targets[late], fingerprint=f"{name}-after-{train_share}")
