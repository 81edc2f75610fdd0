"""KuaiRand's logs: what a short-video app showed its users in April and May 2022 and what they did (kuairand.com).

Reads the full comma-separated logs of the Pure, 1K and 27K versions, and the tab-separated k-core slice, which has no
``is_like`` and ``is_hate`` columns but a ``label`` that is 1 for a like and 0 for a hate.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from mfu_models.batch import Field, SequenceField
from mfubench.errors import BadInput

from .histories import Array, EventLog, rows_where, sort_by_user_and_time
from .logs import VERSION, LogSource, log_schema
from .source import ACTION_SIDE
from .tables import Column, digest, read_table

LOG_NAMES = ("log_standard_*.csv", "processed_standard_*.csv")  # log_random_* comes from another policy
CLICK, LONG_VIEW = 1, 64
ACTION_BITS = {  # as MLPerf's DLRMv3 packs them
    "is_click": CLICK,
    "is_like": 2,
    "is_follow": 4,
    "is_comment": 8,
    "is_forward": 16,
    "is_hate": 32,
    "long_view": LONG_VIEW,
    "is_profile_enter": 128,
}
BY_VERSION = ("is_like", "is_hate")
YEAR_2000_MS, YEAR_2100_MS = 946_684_800_000, 4_102_444_800_000  # a time in seconds falls outside
MOST_TABS = 31  # the app's pages are numbered 0 to 14
DURATION_BUCKETS = 32
COLUMNS = (
    Column("user_id", "int64", least=0),
    Column("video_id", "int64", least=0),
    Column("time_ms", "int64", least=YEAR_2000_MS, most=YEAR_2100_MS),
    Column("duration_ms", "int64"),
    *(Column(name, "int8", 0, 1, required=name not in BY_VERSION) for name in ACTION_BITS),
    Column("label", "int8", 0, 1, required=False),
    Column("tab", "int8", 0, MOST_TABS - 1, required=False),
)
SEQUENCES = (
    SequenceField("clicks", "engagement"),
    SequenceField("long_views", "engagement"),
    SequenceField("events", "exposure"),
)


def read_kuairand(path: Path) -> LogSource:
    """The log in ``path``: one csv file, or all standard logs of one version in a folder or its ``data`` subfolder.

    Target ``is_click``. An event's sides are its video's duration in powers of two (1: 0 ms) and the bitmask of the
    user's actions plus 1. Sparse context: user, video, hour and weekday in China (UTC+8: the log's ``hourmin`` is
    rounded, its ``time_ms`` is not), duration and ``tab``, the app's page plus 1, which is 0 where the log has none.
    Holds 24 bytes a row, and three times that while it reads (measured: 72).

    Raises:
        BadInput: no such path, no log there, logs of several versions, or a log that cannot be read.
    """
    paths = find_logs(path)
    columns = _read(paths)
    users, videos = (int(columns[name].max()) for name in ("user", "item"))
    columns = sort_by_user_and_time(columns)
    actions = columns["action"]
    every = rows_where(np.ones(len(actions), dtype=np.bool_))
    clicks = rows_where((actions & CLICK) > 0)
    members = {"clicks": clicks, "long_views": rows_where((actions & LONG_VIEW) > 0), "events": every}
    sides = np.stack([columns["duration"].astype(np.int16), actions.astype(np.int16) + 1], axis=1)
    schema = log_schema(
        source="kuairand",
        user=Field("user_id", users + 1),
        item=Field("video_id", videos + 1),
        sides=(Field("duration", DURATION_BUCKETS), Field(ACTION_SIDE, 257)),
        sequences=SEQUENCES,
        context=(Field("tab", MOST_TABS + 1),),
        target="is_click",
    )
    return LogSource(
        schema=schema,
        description=(
            f"KuaiRand, {paths[0].name}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {users:,} users, "
            f"{videos:,} videos, {len(every):,} events, click rate {len(clicks) / len(every):.3f}"
        ),
        fingerprint=f"kuairand-{VERSION}-{digest(paths)}",
        log=EventLog.build(columns["user"], columns["time_ms"], columns["item"], sides, members),
        targets=every,
        positives="clicks",
        shown=("events",),
        utc_offset_hours=8,
        context=(columns["tab"],),
    ).standardised()


def find_logs(path: Path) -> list[Path]:
    """The log files that ``path`` means, sorted by name (raises as ``read_kuairand`` does)."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; give a KuaiRand folder or one of its log files")
    found = {log.name: log for folder in (path, path / "data") for names in LOG_NAMES for log in folder.glob(names)}
    if not found:
        raise BadInput(f"{path}: no KuaiRand log in it or in its data folder; looked for {' and '.join(LOG_NAMES)}")
    versions = {match[1] if (match := re.search("_(pure|1k|27k)", name)) else "slice" for name in found}
    if len(versions) > 1:  # each version numbers users and videos anew, and their rows overlap
        raise BadInput(f"{path}: logs of several versions ({', '.join(sorted(versions))}); give one file")
    return [found[name] for name in sorted(found)]


def _read(paths: list[Path]) -> dict[str, Array]:
    """All rows of all files, unsorted, with users and videos numbered from 1 in the order of their ids."""
    chunks = [_compact(chunk) for path in paths for chunk in read_table(path, COLUMNS)]
    columns: dict[str, Array] = {}
    for name in list(chunks[0]):  # column by column, so that no column is held twice for longer than needed
        columns[name] = np.concatenate([chunk.pop(name) for chunk in chunks])
        if name in ("user", "item"):
            columns[name] = (pd.factorize(columns[name], sort=True)[0] + 1).astype(np.int32)
    return columns


def _compact(chunk: Mapping[str, Array]) -> dict[str, Array]:
    flags = dict(chunk)
    if "label" in chunk:
        flags = {"is_like": chunk["label"], "is_hate": 1 - chunk["label"], **chunk}
    actions = np.zeros(len(chunk["user_id"]), dtype=np.uint8)
    for name, bit in ACTION_BITS.items():
        if name in flags:
            actions |= flags[name].astype(np.uint8) * np.uint8(bit)
    tab = chunk["tab"].astype(np.uint8) + np.uint8(1) if "tab" in chunk else np.zeros_like(actions)
    return {
        "user": chunk["user_id"],
        "item": chunk["video_id"],
        "time_ms": chunk["time_ms"],
        "duration": duration_bucket(chunk["duration_ms"]),
        "action": actions,
        "tab": tab,
    }


def duration_bucket(duration_ms: Array) -> Array:
    """1 for 0 ms (which logs hold), then 1 + the number of binary digits, up to the last bucket; 0 stays unknown."""
    digits = np.frexp(np.maximum(duration_ms, 0).astype(np.float64))[1]
    buckets: Array = np.minimum(digits + 1, DURATION_BUCKETS - 1).astype(np.uint8)
    return buckets
