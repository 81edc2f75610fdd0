"""MovieLens folders: labels, the three sequences, and nothing of the rating's own second."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mfubench.data import Batch
from mfubench.data.logs import LogSource
from mfubench.data.movielens import read_movielens
from mfubench.errors import BadInput

LENGTHS = {"liked": 5, "ratings": 4, "tags": 3}
S0 = 1_000_000_000  # Sunday, September 9, 2001, 1:46 UTC
FILES = {
    "ratings.csv": "userId,movieId,rating,timestamp\n"
    f"4,30,4.0,{S0 + 2}\n4,10,0.5,{S0}\n4,20,5.0,{S0 + 1}\n4,50,4.5,{S0 + 2}\n",
    "movies.csv": 'movieId,title,genres\n10,"A, The (1995)",Drama|War\n20,B,Comedy\n30,C,(no genres listed)\n',
    "tags.csv": f'userId,movieId,tag,timestamp\n4,10,dull,{S0 + 1}\n4,30,"late, too late",{S0 + 2}\n9,20,x,{S0}\n',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def counted(source: LogSource, batch: Batch) -> np.ndarray:
    """The dense features before they were standardised."""
    assert source.moments is not None
    found: np.ndarray = batch.dense.double().numpy() * source.moments.deviation + source.moments.mean
    return found


def test_small_folder(folder: Path) -> None:
    source = read_movielens(folder)
    # Sorted rows of user 1: movie 1 rated, 2 rated and 1 tagged at +1 s, 3 and 4 rated and 3 tagged at +2 s.
    batch = source.batch(source.targets, LENGTHS)
    assert batch.candidate_items.tolist() == [1, 2, 3, 4] and batch.labels.tolist() == [0, 1, 1, 1]
    assert batch.times_ms.tolist() == [1000 * S0, 1000 * (S0 + 1), 1000 * (S0 + 2), 1000 * (S0 + 2)]
    assert batch.lengths() == {"liked": [0, 0, 1, 1], "ratings": [0, 1, 2, 2], "tags": [0, 0, 1, 1]}
    # Genres by name: "(no genres listed)" 1, Comedy 2, Drama 3; movie 50 is not in movies.csv.
    assert batch.candidate_sides.tolist() == [[3, 0], [2, 0], [1, 0], [0, 0]]
    assert [s.side_ids[-1].tolist() for s in batch.sequences.values()] == [[2, 10], [2, 10], [3, 11]]
    assert batch.sparse[0].tolist() == [1, 1, 2, 7, 3]
    assert counted(source, batch)[3] == pytest.approx([*np.log1p([1, 2, 1]), 0.5, np.log1p(1)])


def test_the_ratings_file_stands_for_its_folder(folder: Path) -> None:
    assert read_movielens(folder / "ratings.csv").fingerprint == read_movielens(folder).fingerprint


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadInput, match=f"no {name}; a MovieLens folder has ratings.csv, movies.csv, tags.csv"):
        read_movielens(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("ratings.csv", "0.5", "0", r"ratings.csv: column rating holds 0 in row 2 .*allowed: a number from 0.5 to 5"),
        ("ratings.csv", str(S0 + 1), "2001-09-09", "column timestamp holds 2001-09-09 in row 3"),
        ("tags.csv", "movieId", "movie", r"tags.csv: missing column\(s\) movieId"),
        ("tags.csv", FILES["tags.csv"].partition("\n")[2], "", "tags.csv: has a header but no rows"),
        ("movies.csv", ",(no genres listed)\n", "", "movies.csv: the last line has 2 of 3 fields"),
    ],
)
def test_a_bad_file(folder: Path, name: str, old: str, new: str, said: str) -> None:
    (folder / name).write_text(FILES[name].replace(old, new))
    with pytest.raises(BadInput, match=said):
        read_movielens(folder)


def test_another_csv_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"tags.csv: no ratings.csv, movies.csv, tags.csv"):
        read_movielens(folder / "tags.csv")


@pytest.fixture(scope="module")
def real_path(test_data: Path) -> Path:
    return test_data / "ml-latest-small"


@pytest.fixture(scope="module")
def real(real_path: Path) -> LogSource:
    return read_movielens(real_path)


def test_real_histories_equal_a_scan_of_the_files(real: LogSource, real_path: Path) -> None:
    ratings, tags = (pd.read_csv(real_path / f"{name}.csv") for name in ("ratings", "tags"))
    both = pd.concat([ratings, tags])
    both["user"] = both.userId.rank(method="dense").astype(int)
    both["item"] = both.movieId.rank(method="dense").astype(int)
    both = both.sort_values(["user", "timestamp"], kind="stable")
    assert len(real.targets) == len(ratings) and len(real.log.members["tags"]) == len(tags)
    batch = real.batches(100, 1, seed=1, max_lengths=LENGTHS)[0]
    for i in range(batch.num_requests):
        own = both[both.user == batch.sparse[i, 0].item()]
        past = own[own.timestamp * 1000 < batch.times_ms[i].item()]
        kinds = {"liked": past.rating >= 4, "ratings": past.rating.notna(), "tags": past.rating.isna()}
        for name, mask in kinds.items():
            start, stop = batch.sequences[name].offsets[i : i + 2].tolist()
            kept = past[mask].tail(LENGTHS[name])
            assert batch.sequences[name].item_ids[start:stop].tolist() == kept.item.tolist()
            codes = kept.rating.fillna(5.5) * 2
            assert batch.sequences[name].side_ids[start:stop, 1].tolist() == codes.tolist()
        assert counted(real, batch)[i, 0] == pytest.approx(np.log1p(kinds["liked"].sum()), abs=1e-5)


def test_ids_are_within_the_schema(real: LogSource) -> None:
    batch = real.batches(4096, 1, seed=0, max_lengths=LENGTHS)[0]
    for i, field in enumerate(real.schema.sparse):
        assert batch.sparse[:, i].min() >= 0 and batch.sparse[:, i].max() < field.vocab
    assert batch.candidate_sides[:, 1].max() == 0 and min(batch.lengths()["liked"]) == 0
    assert batch.labels.mean().item() == pytest.approx(0.482, abs=0.03)
