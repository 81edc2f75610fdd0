"""Requests of several candidates: whose they are, in which order, and that no candidate knows what came after it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfu_models.common.config import SYNTHETIC_SCHEMAS
from mfubench.data import Batch, Source, open_source
from mfubench.data.histories import Windows
from mfubench.data.kuairand import read_kuairand
from mfubench.data.logs import LogSource
from mfubench.data.movielens import read_movielens
from mfubench.errors import BadInput

KUAIRAND_LENGTHS = {"clicks": 5, "long_views": 4, "events": 6}
MOVIELENS_LENGTHS = {"liked": 5, "ratings": 4, "tags": 3}


@pytest.fixture(scope="module")
def kuairand(test_data: Path) -> LogSource:
    return read_kuairand(test_data / "kuairand-slice")


@pytest.fixture(scope="module")
def movielens(test_data: Path) -> LogSource:
    return read_movielens(test_data / "ml-latest-small")


@pytest.fixture(scope="module")
def synthetic() -> Source:
    return open_source("synthetic", SYNTHETIC_SCHEMAS["tiny"])


def rows(batch: Batch, column: torch.Tensor) -> torch.Tensor:
    """A column of candidates as [B, m]."""
    return column.unflatten(0, (batch.num_requests, batch.num_candidates))


def same_inputs(one: Batch, other: Batch) -> bool:
    names = ("dense", "sparse", "candidate_items", "candidate_sides", "times_ms", "labels")
    same = [torch.equal(getattr(one, name), getattr(other, name)) for name in names]
    for name, sequence in one.sequences.items():
        for part in ("item_ids", "side_ids", "times_ms", "offsets"):
            same.append(torch.equal(getattr(sequence, part), getattr(other.sequences[name], part)))
    return all(same)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.integers(1, 7))
def test_windows_are_all_that_fit_into_a_group(lengths: list[int], size: int) -> None:
    begins = np.concatenate([[0], np.cumsum(lengths)])
    fit = [b + i for b, n in zip(begins, lengths, strict=False) for i in range(n - size + 1)]
    windows = Windows.of(begins, size)
    assert windows.ends[-1] == len(fit)
    if fit:
        drawn = windows.draw(np.random.default_rng(0), 60 * len(fit))
        assert sorted(set(drawn.tolist())) == fit
        every = windows.shifts[np.searchsorted(windows.ends, np.arange(len(fit)), side="right")] + np.arange(len(fit))
        assert every.tolist() == fit


def test_requests_equal_a_scan_of_kuairand(kuairand: LogSource, test_data: Path) -> None:
    raw = pd.read_csv(next((test_data / "kuairand-slice").glob("*.csv")), sep="\t")
    raw["user"] = raw.user_id.rank(method="dense").astype(int)
    raw["item"] = raw.video_id.rank(method="dense").astype(int)
    raw = raw.sort_values(["user", "time_ms"], kind="stable")
    assert kuairand.moments is not None
    batch = kuairand.batches(60, 1, seed=3, max_lengths=KUAIRAND_LENGTHS, num_candidates=8)[0]
    users, items, labels = (rows(batch, c) for c in (batch.sparse[:, 0], batch.candidate_items, batch.labels))
    later = 0
    for i in range(batch.num_requests):
        assert users[i].unique().numel() == 1
        own = raw[raw.user == users[i, 0].item()].reset_index()
        past = own[own.time_ms < batch.times_ms[i].item()]
        start = next(
            at
            for at in range(len(past), len(own))  # rows of the request's own moment may come before it
            if own.item.tolist()[at : at + 8] == items[i].tolist()
        )
        window = own[start : start + 8]
        assert window.time_ms.iloc[0] == batch.times_ms[i].item() and window.is_click.tolist() == labels[i].tolist()
        begin, end = batch.sequences["events"].offsets[i : i + 2].tolist()
        assert batch.sequences["events"].item_ids[begin:end].tolist() == past.item.tail(6).tolist()
        for dense in rows(batch, batch.dense)[i].double().numpy():
            counted = dense * kuairand.moments.deviation + kuairand.moments.mean
            assert counted[2] == pytest.approx(np.log1p(len(past)), abs=1e-5)
            assert counted[3] == pytest.approx(past.is_click.mean() if len(past) else 0, abs=1e-5)
        later += window.time_ms.iloc[-1] > window.time_ms.iloc[0]
    assert later > 30  # so a history up to a later candidate's time would have been another one


@pytest.mark.parametrize("name", ["kuairand", "movielens"])
def test_all_but_the_candidate_itself_is_the_first_ones(name: str, request: pytest.FixtureRequest) -> None:
    source: LogSource = request.getfixturevalue(name)
    lengths = {"kuairand": KUAIRAND_LENGTHS, "movielens": MOVIELENS_LENGTHS}[name]
    batch = source.batches(64, 1, seed=1, max_lengths=lengths, num_candidates=5)[0]
    expanded = batch.per_impression()
    fields = [field.name for field in source.schema.sparse]
    own = [fields.index(source.schema.item.name), fields.index(source.schema.sides[0].name)]
    shared = [i for i in range(len(fields)) if i not in own]
    assert (rows(batch, batch.dense) == rows(batch, batch.dense)[:, :1]).all()
    assert (rows(batch, batch.sparse)[..., shared] == rows(batch, batch.sparse)[:, :1, shared]).all()
    assert torch.equal(batch.sparse[:, own[0]], batch.candidate_items)
    assert torch.equal(batch.sparse[:, own[1]], batch.candidate_sides[:, 0])
    assert (rows(batch, batch.candidate_items).diff(dim=1) != 0).any()
    for sequence in expanded.sequences.values():
        ends = expanded.times_ms.repeat_interleave(sequence.offsets.diff())
        assert (sequence.times_ms < ends).all()  # ends are request times: each candidate's own is at or after them
    assert len(batch.labels) == 320 and expanded.num_requests == 320


def test_what_happens_to_the_candidates_changes_no_input(tmp_path: Path) -> None:
    """Every action from the request on is turned over, and only the labels follow.

    A log's moments are of all its rows, as its vocabularies are: here they are those of no log.
    """
    header = "user_id,video_id,time_ms,is_click,is_follow,is_comment,is_forward,long_view,duration_ms,is_profile_enter"
    t0 = 1_650_000_000_000

    def source(future: int) -> LogSource:
        lines = [f"1,{10 + i},{t0 + i},{i % 2},0,0,0,{i % 2},5000,0" for i in range(6)]
        lines += [f"1,{10 + i},{t0 + i},{future},0,0,0,{future},5000,0" for i in range(6, 12)]
        path = tmp_path / f"log_{future}.csv"
        path.write_text("\n".join([header, *lines]) + "\n")
        return replace(read_kuairand(path), moments=None)

    at = np.arange(6, 11)
    none, all_ = (source(future).batch(at, KUAIRAND_LENGTHS, num_candidates=5) for future in (0, 1))
    assert none.labels.tolist() == [0] * 5 and all_.labels.tolist() == [1] * 5
    assert none.num_requests == 1 and none.lengths() == {"clicks": [3], "long_views": [3], "events": [6]}
    none.labels[:] = 1
    assert same_inputs(none, all_)


def test_context_is_the_requests(tmp_path: Path) -> None:
    """The page that a later candidate was shown on, its hour and its weekday are not known yet."""
    header = (
        "user_id,video_id,time_ms,is_click,is_follow,is_comment,is_forward,long_view,duration_ms,is_profile_enter,tab"
    )
    t0 = 1_650_000_000_000
    lines = [f"1,{i},{t0 + i * 30 * 3_600_000},1,0,0,0,0,{2**i},0,{i}" for i in range(3)]
    (tmp_path / "log.csv").write_text("\n".join([header, *lines]) + "\n")
    batch = read_kuairand(tmp_path / "log.csv").batch(np.arange(3), KUAIRAND_LENGTHS, num_candidates=3)
    user, video, hour, weekday, duration, tab = batch.sparse.T.tolist()
    assert user == [1] * 3 and hour == [14] * 3 and weekday == [5] * 3 and tab == [1] * 3
    assert video == [1, 2, 3] and duration == [2, 3, 4]


@pytest.mark.parametrize(("name", "most"), [("kuairand", 614), ("movielens", 2_698)])
def test_as_many_as_one_user_has_and_no_more(name: str, most: int, request: pytest.FixtureRequest) -> None:
    source: LogSource = request.getfixturevalue(name)
    lengths = dict.fromkeys((sequence.name for sequence in source.schema.sequences), 2)
    batch = source.batches(2, 1, seed=0, max_lengths=lengths, num_candidates=most)[0]
    assert batch.num_impressions == 2 * most and batch.sparse[:, 0].unique().numel() == 1
    with pytest.raises(BadInput, match=f"num_candidates={most + 1}; allowed: 1 to {most}, the most impressions of one"):
        source.batches(2, 1, seed=0, max_lengths=lengths, num_candidates=most + 1)


def test_a_split_keeps_its_requests_on_its_side(kuairand: LogSource) -> None:
    for source in kuairand.split_by_time(0.8):
        batch = source.batches(50, 1, seed=0, max_lengths=KUAIRAND_LENGTHS, num_candidates=4)[0]
        users, items = source.log.users(source.targets), source.log.items[source.targets]
        for user, wanted in zip(
            rows(batch, batch.sparse)[:, 0, 0].tolist(), rows(batch, batch.candidate_items).tolist(), strict=True
        ):
            own = items[users == user].tolist()
            assert wanted in [own[i : i + 4] for i in range(len(own) - 3)]


def test_synthetic_candidates_share_their_request(synthetic: Source) -> None:
    lengths = {"clicks": 12, "impressions": 20}
    batch = synthetic.batches(40, 1, seed=2, max_lengths=lengths, num_candidates=6)[0]
    assert batch.num_requests == 40 and batch.num_impressions == 240 and batch.dense.shape == (240, 13)
    sparse = rows(batch, batch.sparse)
    assert (sparse[..., ::2] == sparse[:, :1, ::2]).all() and (sparse[..., 1::2] != sparse[:, :1, 1::2]).any()
    assert len(batch.lengths()["impressions"]) == 40 and rows(batch, batch.candidate_items).unique(dim=1).shape[1] == 6
    for sequence in batch.sequences.values():
        assert (sequence.times_ms < batch.times_ms.repeat_interleave(sequence.offsets.diff())).all()
    wide = synthetic.batches(2_000, 1, seed=2, max_lengths={"clicks": 1, "impressions": 1}, num_candidates=8)[0]
    assert wide.labels.mean().item() == pytest.approx(0.379, abs=0.02)


@pytest.mark.parametrize("name", ["kuairand", "movielens", "synthetic"])
def test_one_candidate_is_the_default_and_zero_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    source: Source = request.getfixturevalue(name)
    lengths = dict.fromkeys((sequence.name for sequence in source.schema.sequences), 3)
    default = source.batches(16, 1, seed=4, max_lengths=lengths)[0]
    assert same_inputs(default, source.batches(16, 1, seed=4, max_lengths=lengths, num_candidates=1)[0])
    assert default.num_candidates == 1
    with pytest.raises(BadInput, match="num_candidates=0; allowed: 1 or more"):
        source.batches(16, 1, seed=4, max_lengths=lengths, num_candidates=0)


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("kuairand", [5415, 3928, 5739, 5539, 1027, 1896]),
        ("synthetic", [3, 536, 749, 259, 401, 204]),
    ],
)
def test_what_a_seed_draws_stays(name: str, items: list[int], request: pytest.FixtureRequest) -> None:
    """Runs compare by their data's hash: a change of what a seed draws must be meant."""
    source: Source = request.getfixturevalue(name)
    lengths = dict.fromkeys((sequence.name for sequence in source.schema.sequences), 3)
    assert source.batches(6, 1, seed=0, max_lengths=lengths)[0].candidate_items.tolist() == items
