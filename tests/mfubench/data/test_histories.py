"""The history of an impression is exactly what lies strictly before it, for any log."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfubench.data.histories import EventLog, rows_where, sort_by_user_and_time
from mfubench.errors import BadInput

# Few users and fewer moments, so that most events share a moment with another.
EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1000, 1006), st.booleans()), min_size=1, max_size=40)


def build(events: list[tuple[int, int, bool]]) -> tuple[EventLog, list[tuple[int, int, bool, int]]]:
    users, times, engaged = (np.array(column) for column in zip(*events, strict=True))
    columns = {"user": users, "time_ms": times, "engaged": engaged, "item": np.arange(1, len(events) + 1)}
    columns = sort_by_user_and_time(columns)
    members = {"engaged": rows_where(columns["engaged"]), "all": rows_where(np.ones(len(events), dtype=bool))}
    sides = np.stack([columns["item"] * 10, columns["item"] * 10 + 1], axis=1)
    log = EventLog.build(columns["user"], columns["time_ms"], columns["item"], sides, members)
    return log, list(zip(*(columns[name].tolist() for name in ("user", "time_ms", "engaged", "item")), strict=True))


@settings(deadline=None)
@given(events=EVENTS, max_length=st.integers(1, 6))
def test_history_equals_a_scan_of_the_log(events: list[tuple[int, int, bool]], max_length: int) -> None:
    log, rows = build(events)
    every = np.arange(len(rows))
    first, end = log.before(every)
    for name in ("engaged", "all"):
        sequence = log.history(name, first, end, max_length)
        counts = log.count(name, first, end)
        offsets = sequence.offsets.tolist()
        for i, (user, time, _, _) in enumerate(rows):
            past = [r for r in rows if r[0] == user and r[1] < time and (r[2] or name == "all")]
            kept = slice(offsets[i], offsets[i + 1])
            assert counts[i] == len(past)
            assert sequence.item_ids[kept].tolist() == [r[3] for r in past[-max_length:]]
            assert sequence.times_ms[kept].tolist() == [r[1] for r in past[-max_length:]]
            assert sequence.side_ids[kept].tolist() == [[r[3] * 10, r[3] * 10 + 1] for r in past[-max_length:]]
        assert sequence.max_length == max(sequence.lengths())


@settings(deadline=None)
@given(events=EVENTS)
def test_users_and_times_come_back_from_the_keys(events: list[tuple[int, int, bool]]) -> None:
    log, rows = build(events)
    every = np.arange(len(rows))
    assert log.users(every).tolist() == [row[0] for row in rows]
    assert log.times_ms(every).tolist() == [row[1] for row in rows]


def test_sequences_without_events_are_kept() -> None:
    log, _ = build([(0, 1000, False), (1, 1000, False)])
    first, end = log.before(np.array([0, 1]))
    sequence = log.history("all", first, end, max_length=5)
    assert sequence.offsets.tolist() == [0, 0, 0]
    assert sequence.item_ids.shape == (0,) and sequence.side_ids.shape == (0, 2) and sequence.max_length == 0


def test_more_users_and_time_than_a_key_can_hold_is_refused() -> None:
    users, times = np.array([0, 2**40]), np.array([0, 2**40])
    with pytest.raises(BadInput, match="too many for one log"):
        EventLog.build(users, times, users, users[:, None], {})
