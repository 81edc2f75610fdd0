"""A sorted event log, and each user's history before a moment found in it by binary search."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mfu_models.batch import EventSequence
from mfubench.errors import BadInput

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def rows_where(mask: Bools) -> Array:
    """The rows where ``mask`` holds, ascending, in the smallest of int32 and int64 that can number them."""
    rows = np.flatnonzero(mask)
    return rows.astype(np.int32) if len(mask) < 2**31 else rows


def sort_by_user_and_time(columns: Mapping[str, Array]) -> dict[str, Array]:
    """The same columns with their rows sorted by ``user``, then ``time_ms``; ties keep the order they came in."""
    order = np.lexsort((columns["time_ms"], columns["user"]))
    return {name: column[order] for name, column in columns.items()}


@dataclass(frozen=True, slots=True)
class EventLog:
    """N events sorted by (user, time), and for each sequence the rows that belong to it.

    ``keys`` int64 [N] is user * span_ms + time - first_ms. It is sorted, so that one binary search over the whole log
    finds where a user's time begins. ``items`` [N], ``sides`` [N, num_sides]; ``members`` holds ascending rows.
    """

    keys: Ints
    first_ms: int
    span_ms: int
    items: Array
    sides: Array
    members: Mapping[str, Array]

    @staticmethod
    def build(users: Array, times_ms: Array, items: Array, sides: Array, members: Mapping[str, Array]) -> "EventLog":
        """The log of rows that are sorted by (user, time); users are numbered from 0 or 1.

        Raises:
            BadInput: more users, or a longer span, than a 64-bit key can tell apart.
        """
        first_ms, last_ms = (int(times_ms.min()), int(times_ms.max())) if len(times_ms) else (0, 0)
        span_ms = last_ms - first_ms + 1
        most_users = int(users.max()) + 1 if len(users) else 0
        if most_users * span_ms >= 2**63:
            raise BadInput(f"{most_users} users over {span_ms} ms are too many for one log; give a part of it")
        keys = users.astype(np.int64)
        keys *= span_ms
        keys += times_ms
        keys -= first_ms
        return EventLog(keys, first_ms, span_ms, items, sides, members)

    def users(self, rows: Array) -> Ints:
        """The user of each row."""
        users: Ints = self.keys[rows] // self.span_ms
        return users

    def times_ms(self, rows: Array) -> Ints:
        """The Unix time of each row in ms."""
        times: Ints = self.keys[rows] % self.span_ms + self.first_ms
        return times

    def user_begins(self) -> Ints:
        """The first row of each user 0, 1, .., and at last the number of rows: int64 [users + 1]."""
        users = np.arange(self.keys[-1] // self.span_ms + 2)
        begins: Ints = np.searchsorted(self.keys, users * self.span_ms)
        return begins

    def before(self, rows: Array) -> tuple[Ints, Ints]:
        """For each row, the range [first, end) of its user's events strictly before it in time.

        An event in the same millisecond is outside: nobody knows which came first, and in a feed the two were often
        shown at once, so that the one would tell what happened to the other.
        """
        keys = self.keys[rows]
        first = np.searchsorted(self.keys, keys - keys % self.span_ms, side="left")
        end = np.searchsorted(self.keys, keys, side="left")
        return first.astype(np.int64), end.astype(np.int64)

    def count(self, name: str, first: Ints, end: Ints) -> Ints:
        """How many events of sequence ``name`` lie in each range of rows."""
        start, stop = _member_ranges(self.members[name], first, end)
        return stop - start

    def history(self, name: str, first: Ints, end: Ints, max_length: int) -> EventSequence:
        """The last ``max_length`` events of sequence ``name`` in each range of rows."""
        rows, lengths = last_members(self.members[name], first, end, max_length)
        return make_sequence(self.items[rows], self.sides[rows], self.times_ms(rows), lengths)


@dataclass(frozen=True, slots=True)
class Windows:
    """Runs of successive places that do not cross from one group to the next, numbered group by group.

    ``ends`` [G] counts the windows up to each group's last; a window's number plus ``shifts`` [G] is its first place.
    """

    ends: Ints
    shifts: Ints

    @staticmethod
    def of(begins: Ints, size: int) -> "Windows":
        """The windows of ``size`` places in groups that lie between successive ``begins`` [G+1]."""
        counts = np.maximum(np.diff(begins) - (size - 1), 0)
        ends = np.cumsum(counts)
        return Windows(ends, begins[:-1] - (ends - counts))

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        """First places of ``count`` windows, drawn uniformly and with replacement."""
        numbers = rng.integers(self.ends[-1], size=count)
        places: Ints = numbers + self.shifts[np.searchsorted(self.ends, numbers, side="right")]
        return places


def _member_ranges(members: Array, first: Ints, end: Ints) -> tuple[Ints, Ints]:
    # Bounds of another dtype than the array searched would make numpy convert the whole array at every call.
    start, stop = (np.searchsorted(members, bound.astype(members.dtype), side="left") for bound in (first, end))
    return start.astype(np.int64), stop.astype(np.int64)


def last_members(members: Array, first: Ints, end: Ints, max_length: int) -> tuple[Array, Ints]:
    """The last ``max_length`` of the ascending rows ``members`` in each range [first, end): rows [T], lengths [B]."""
    start, stop = _member_ranges(members, first, end)
    lengths = np.minimum(stop - start, max_length)
    begins = np.cumsum(lengths) - lengths
    return members[np.arange(lengths.sum()) + np.repeat(stop - lengths - begins, lengths)], lengths


def make_sequence(items: Array, sides: Array, times_ms: Array, lengths: Ints) -> EventSequence:
    """T events of B samples ([T], [T, num_sides], [T], lengths [B]) as a jagged sequence on the CPU."""
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    ids, side_ids, times, ends = (
        torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for array in (items, sides, times_ms, offsets)
    )
    return EventSequence(ids, side_ids, times, ends, int(lengths.max(initial=0)), lengths)
