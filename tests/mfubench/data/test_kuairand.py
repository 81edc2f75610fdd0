"""KuaiRand logs, full and slice: ids, sides, labels, and above all nothing from the future."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mfubench.data import Batch
from mfubench.data.kuairand import duration_bucket, find_logs, read_kuairand
from mfubench.data.logs import LogSource, Moments
from mfubench.errors import BadInput

FULL_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
T0 = 1_650_000_000_000  # Friday, April 15, 2022, 13:20 in China
FLAGS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter")
LENGTHS = {"clicks": 5, "long_views": 4, "events": 6}


def line(user: int, video: int, after_ms: int, *actions: str, duration_ms: int = 8_000, tab: int = 1) -> str:
    known = {"user_id": user, "video_id": video, "time_ms": T0 + after_ms, "duration_ms": duration_ms, "tab": tab}
    flags = {name: int(name in actions) for name in FLAGS}
    return ",".join(str((known | flags).get(name, 0)) for name in FULL_HEADER.split(","))


def write(path: Path, *lines: str, header: str = FULL_HEADER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


def sample(source: LogSource, row: int) -> Batch:
    return source.batch(np.array([row]), LENGTHS)


def counted(source: LogSource, batch: Batch) -> np.ndarray:
    """The dense features before they were standardised."""
    assert source.moments is not None
    found: np.ndarray = batch.dense.double().numpy() * source.moments.deviation + source.moments.mean
    return found


def events(batch: Batch, name: str) -> list[int]:
    return batch.sequences[name].item_ids.tolist()


@pytest.fixture
def small(tmp_path: Path) -> LogSource:
    """User 7's rows, out of order: at 0, 10 and 20 ms, at 30 ms twice (one of them the target), and in the future."""
    log = write(
        tmp_path / "log_standard_4_08_to_4_21_pure.csv",
        line(7, 900, 40, "is_click", "long_view"),
        line(7, 300, 20, "is_click", "long_view", "is_like", duration_ms=0),
        line(7, 600, 30, "is_click", "long_view"),
        line(7, 500, 30, "is_click", tab=14),
        line(7, 200, 10),
        line(7, 100, 0, "is_click", "is_hate", "is_profile_enter", duration_ms=1),
        line(9, 100, 5, "is_click"),
        line(2, 900, 25, "is_click"),
    )
    return read_kuairand(log)


def test_nothing_at_or_after_the_impression_is_in_its_history(small: LogSource) -> None:
    # Sorted rows: user 2 -> 0; user 7 -> 1 .. 6 (videos 100, 200, 300, 600, 500, 900); user 9 -> 7. Videos by rank.
    target = sample(small, 5)
    assert target.candidate_items.tolist() == [4] and target.times_ms.tolist() == [T0 + 30]
    assert events(target, "events") == [1, 2, 3]  # neither 600, of the same moment, nor 900, of the future
    assert events(target, "clicks") == [1, 3] and events(target, "long_views") == [3]
    past_clicks, past_long_views, past_events, click_rate, recency = counted(small, target)[0].tolist()
    assert [past_clicks, past_long_views, past_events] == pytest.approx(np.log1p([2, 1, 3]))
    assert click_rate == pytest.approx(2 / 3) and recency == pytest.approx(np.log1p(0.010))


def test_an_impression_without_a_past_is_kept(small: LogSource) -> None:
    batch = small.batch(np.array([0, 1, 7]), LENGTHS)
    assert batch.lengths() == {"clicks": [0, 0, 0], "long_views": [0, 0, 0], "events": [0, 0, 0]}
    assert batch.labels.tolist() == [1, 1, 1] and counted(small, batch) == pytest.approx(np.zeros((3, 5)), abs=1e-6)


def test_sides_and_context(small: LogSource) -> None:
    batch = small.batch(np.array([6, 5]), LENGTHS)
    seen = batch.sequences["events"].side_ids[:5].tolist()
    # 1 ms, 8000 ms of 13 digits, 0 ms; click 1 + hate 32 + profile 128, nothing, click 1 + like 2 + long view 64
    assert seen == [[2, 162], [14, 1], [1, 68], [14, 66], [14, 2]]
    assert batch.candidate_sides.tolist() == [[14, 0], [14, 0]]
    assert [field.name for field in small.schema.sparse] == [
        "user_id",
        "video_id",
        "hour",
        "weekday",
        "duration",
        "tab",
    ]
    assert batch.sparse.tolist() == [[2, 6, 14, 5, 14, 2], [2, 4, 14, 5, 14, 15]]


def test_the_most_recent_events_are_kept(small: LogSource) -> None:
    batch = small.batch(np.array([6]), {"clicks": 2, "long_views": 1, "events": 3})
    assert events(batch, "events") == [3, 5, 4] and events(batch, "clicks") == [5, 4]
    assert events(batch, "long_views") == [5]
    assert counted(small, batch)[0, 2] == pytest.approx(np.log1p(5))  # of the whole past, not of what is kept


def test_files_of_a_folder_and_its_data_folder_make_one_log(small: LogSource, tmp_path: Path) -> None:
    write(tmp_path / "data" / "log_standard_4_22_to_5_08_pure.csv", line(7, 50, 90), line(1, 50, 0))
    write(tmp_path / "data" / "log_random_4_22_to_5_08_pure.csv", "not read")
    both = read_kuairand(tmp_path)
    assert len(both.targets) == 10 and both.schema.item.vocab == small.schema.item.vocab + 1
    assert events(sample(both, 8), "events") == [2, 3, 4, 6, 5, 7]  # ids moved up by the new video 50
    assert both.fingerprint != small.fingerprint
    assert both.description == (
        "KuaiRand, log_standard_4_08_to_4_21_pure.csv and 1 more: 4 users, 7 videos, 10 events, click rate 0.700"
    )


def test_a_log_without_tab_gives_the_unknown_id(tmp_path: Path) -> None:
    header = FULL_HEADER.removesuffix(",tab")
    log = write(tmp_path / "any_name.csv", line(1, 2, 3).rpartition(",")[0], header=header)
    assert sample(read_kuairand(log), 0).sparse[0, -1].item() == 0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            (),
            r"no KuaiRand log in it or in its data .*; looked for log_standard_\*.csv and processed_standard_\*.csv",
        ),
        (("user_features_pure.csv", "log_random_4_22_to_5_08_pure.csv"), "no KuaiRand log in it"),
        (("log_standard_a_1k.csv", "data/log_standard_a_pure.csv"), r"logs of several versions \(1k, pure\)"),
    ],
)
def test_a_folder_without_one_log(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    for name in names:
        write(tmp_path / name, line(1, 2, 3))
    with pytest.raises(BadInput, match=said):
        find_logs(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("video_id", "photo_id", r"missing column\(s\) video_id"),
        (
            str(T0 + 3),
            str(T0 // 1000),
            "column time_ms holds 1650000000 in row 1 .*allowed: a whole number from 9466848000",
        ),
        ("\n1,2,", "\n1,two,", "column video_id holds two in row 1"),
        (",1\n", "\n", "the last line has 18 of 19 fields"),
    ],
)
def test_a_bad_log(tmp_path: Path, old: str, new: str, said: str) -> None:
    log = write(tmp_path / "log.csv", line(1, 2, 3))
    log.write_text(log.read_text().replace(old, new))
    with pytest.raises(BadInput, match=said):
        read_kuairand(log)


def test_duration_buckets() -> None:
    durations = np.array([-5, 0, 1, 2, 3, 4, 7, 8, 2**29 - 1, 2**29, 2**62])
    assert duration_bucket(durations).tolist() == [1, 1, 2, 3, 3, 4, 4, 5, 30, 31, 31]


@pytest.fixture(scope="module")
def slice_path(test_data: Path) -> Path:
    return test_data / "kuairand-slice"


@pytest.fixture(scope="module")
def real(slice_path: Path) -> LogSource:
    return read_kuairand(slice_path)


def test_the_slice_is_read_whole(real: LogSource) -> None:
    assert real.description == (
        "KuaiRand, processed_standard_kcore_15.csv: 664 users, 9,359 videos, 41,828 events, click rate 0.657"
    )
    assert len(real.log.members["long_views"]) / 41_828 == pytest.approx(0.462, abs=1e-3)
    actions = real.log.sides[:, 1] - 1
    assert ((actions & 2) > 0).sum() == 33_745 and ((actions & 32) > 0).sum() == 8_083


def test_real_histories_equal_a_scan_of_the_file(real: LogSource, slice_path: Path) -> None:
    """The oracle filters the raw rows with pandas; ids are compared through ranks taken there."""
    raw = pd.read_csv(next(slice_path.glob("*.csv")), sep="\t")
    raw["user"] = raw.user_id.rank(method="dense").astype(int)
    raw["item"] = raw.video_id.rank(method="dense").astype(int)
    raw = raw.sort_values(["user", "time_ms"], kind="stable")
    batch = real.batches(150, 1, seed=3, max_lengths=LENGTHS)[0]
    clashes, dense = 0, counted(real, batch)
    for i in range(batch.num_requests):
        user, item, time = batch.sparse[i, 0].item(), batch.candidate_items[i].item(), batch.times_ms[i].item()
        own = raw[raw.user == user]
        assert batch.labels[i].item() in own[(own.item == item) & (own.time_ms == time)].is_click.tolist()
        past = own[own.time_ms < time]
        clashes += (own.time_ms == time).sum() > 1
        for name, rows in {
            "clicks": past[past.is_click == 1],
            "long_views": past[past.long_view == 1],
            "events": past,
        }.items():
            start, stop = batch.sequences[name].offsets[i : i + 2].tolist()
            kept = rows.tail(LENGTHS[name])
            assert batch.sequences[name].item_ids[start:stop].tolist() == kept.item.tolist()
            assert batch.sequences[name].times_ms[start:stop].tolist() == kept.time_ms.tolist()
        assert dense[i, 2] == pytest.approx(np.log1p(len(past)), abs=1e-5)
        assert dense[i, 3] == pytest.approx(past.is_click.mean() if len(past) else 0, abs=1e-5)
    assert clashes > 10  # the draw does meet rows that share their moment


def test_a_seed_gives_the_same_batches(real: LogSource) -> None:
    one, two = (real.batches(64, n, seed=5, max_lengths=LENGTHS)[0] for n in (1, 3))
    other = real.batches(64, 2, seed=6, max_lengths=LENGTHS)
    assert torch.equal(one.sparse, two.sparse) and torch.equal(one.dense, two.dense)
    assert torch.equal(one.sequences["events"].item_ids, two.sequences["events"].item_ids)
    assert not torch.equal(one.sparse, other[0].sparse) and not torch.equal(other[0].sparse, other[1].sparse)


def test_ids_are_within_the_schema(real: LogSource) -> None:
    batch = real.batches(2048, 1, seed=0, max_lengths=LENGTHS)[0]
    for i, field in enumerate(real.schema.sparse):
        assert batch.sparse[:, i].min() >= 0 and batch.sparse[:, i].max() < field.vocab
    assert batch.sparse[:, :5].min() > 0 and batch.candidate_sides[:, 1].max() == 0
    for sequence in batch.sequences.values():
        assert sequence.item_ids.min() > 0 and sequence.item_ids.max() < real.schema.item.vocab
        for i, side in enumerate(real.schema.sides):
            assert sequence.side_ids[:, i].min() > 0 and sequence.side_ids[:, i].max() < side.vocab
    assert batch.labels.mean().item() == pytest.approx(0.657, abs=0.04)


def test_dense_features_are_standardised_by_the_impressions_that_are_learnt_from(real: LogSource) -> None:
    """As counts' logarithms they would be several times as large as embeddings, which they are added to."""
    first, second = real.split_by_time(0.5)
    assert second.moments is first.moments and first.moments is not real.moments
    for source in (real, first):
        dense = source.batch(source.targets, LENGTHS).dense.numpy()
        assert dense.mean(0) == pytest.approx(np.zeros(5), abs=1e-4) and dense.std(0) == pytest.approx(1, abs=1e-4)
    later = second.batch(second.targets, LENGTHS).dense.numpy()
    assert later.mean(0)[2] > 0.3  # the later, the more events there are before


def test_moments_of_what_never_changes() -> None:
    found = Moments.of(np.array([[3.0, 1.0], [3.0, 2.0]]))
    assert found.mean.tolist() == [3.0, 1.5] and found.deviation.tolist() == [1.0, 0.5]


def test_split_by_time_keeps_the_future_out_of_training(real: LogSource) -> None:
    train, held_out = real.split_by_time(0.8)
    before, after = train.log.times_ms(train.targets), held_out.log.times_ms(held_out.targets)
    assert before.max() < after.min() and len(before) + len(after) == 41_828
    assert len(before) / 41_828 == pytest.approx(0.8, abs=0.01)
    assert len({real.fingerprint, train.fingerprint, held_out.fingerprint}) == 3
    with pytest.raises(BadInput, match="train_share=1 leaves a side empty"):
        real.split_by_time(1)
