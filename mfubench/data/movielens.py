"""MovieLens ratings and tags (grouplens.org/datasets/movielens), in the folder layout of ml-latest-small.

Times are seconds there, and one rating in six shares its user's second with another: histories end strictly before.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from mfu_models.batch import Field, SequenceField
from mfubench.errors import BadInput

from .histories import Array, EventLog, rows_where, sort_by_user_and_time
from .logs import VERSION, LogSource, log_schema
from .source import ACTION_SIDE
from .tables import Column, digest, read_table

FILES = ("ratings.csv", "movies.csv", "tags.csv")
YEAR_1990_S, YEAR_2100_S = 631_152_000, 4_102_444_800
WHO_WHAT_WHEN = (
    Column("userId", "int64", least=0),
    Column("movieId", "int64", least=0),
    Column("timestamp", "int64", least=YEAR_1990_S, most=YEAR_2100_S),
)
LIKED = 8  # half stars: a rating of 4 or more
FIVE_STARS = 10
TAGGED = 11
SEQUENCES = (
    SequenceField("liked", "engagement"),
    SequenceField("ratings", "exposure"),
    SequenceField("tags", "engagement"),
)


def read_movielens(path: Path) -> LogSource:
    """The data set in folder ``path``, or beside the file ``path/ratings.csv``.

    Target: a rating of 4 or more. Sequences: the ratings of 4 or more, all ratings, which are all that a user is known
    to have been shown, and tags. An event's sides are its movie's first genre and what the user did: the rating in half
    stars, 1 to 10, or 11 for a tag; a movie that movies.csv lacks is of the unknown genre. Sparse context: user, movie,
    hour and weekday (UTC), genre.

    Raises:
        BadInput: no such folder, one of its three files is missing, or one that cannot be read.
    """
    folder = path.parent if path.name == FILES[0] else path
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; give a MovieLens folder")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise BadInput(f"{folder}: no {', '.join(missing)}; a MovieLens folder has {', '.join(FILES)}")
    columns = sort_by_user_and_time(_read(folder))
    users, movies, genres = (int(columns[name].max()) for name in ("user", "item", "genre"))
    actions = columns["action"]
    rated = actions <= FIVE_STARS
    targets = rows_where(rated)
    members = {
        "liked": rows_where(rated & (actions >= LIKED)),
        "ratings": targets,
        "tags": rows_where(actions == TAGGED),
    }
    sides = np.stack([columns["genre"], actions], axis=1)
    return LogSource(
        schema=log_schema(
            source="movielens",
            user=Field("user_id", users + 1),
            item=Field("movie_id", movies + 1),
            sides=(Field("genre", genres + 1), Field(ACTION_SIDE, TAGGED + 1)),
            sequences=SEQUENCES,
            target="rating_of_4_or_more",
        ),
        description=(
            f"MovieLens, {folder.resolve().name}: {users:,} users, {movies:,} movies, {len(targets):,} ratings and "
            f"{len(members['tags']):,} tags, rate of a rating of 4 or more {len(members['liked']) / len(targets):.3f}"
        ),
        fingerprint=f"movielens-{VERSION}-{digest([folder / name for name in FILES])}",
        log=EventLog.build(columns["user"], columns["time_ms"], columns["item"], sides, members),
        targets=targets,
        positives="liked",
        shown=("ratings",),
        utc_offset_hours=0,
    ).standardised()


def _read(folder: Path) -> dict[str, Array]:
    """Ratings, then tags, unsorted; users, movies and genres are numbered from 1 in the order of their ids or names."""
    ratings = _table(folder / "ratings.csv", *WHO_WHAT_WHEN, Column("rating", "float64", least=0.5, most=5))
    tags = _table(folder / "tags.csv", *WHO_WHAT_WHEN)
    movies = _table(folder / "movies.csv", Column("movieId", "int64", least=0), Column("genres", "str"))
    who, what, when = (np.concatenate([ratings[column.name], tags[column.name]]) for column in WHO_WHAT_WHEN)
    half_stars = np.rint(2 * ratings["rating"]).astype(np.int16)
    return {
        "user": pd.factorize(who, sort=True)[0] + 1,
        "item": (pd.factorize(what, sort=True)[0] + 1).astype(np.int32),
        "time_ms": when * 1000,
        "genre": _first_genres(movies, what),
        "action": np.concatenate([half_stars, np.full(len(tags["userId"]), TAGGED, dtype=np.int16)]),
    }


def _table(path: Path, *columns: Column) -> dict[str, Array]:
    chunks = list(read_table(path, columns))
    return {column.name: np.concatenate([chunk[column.name] for chunk in chunks]) for column in columns}


def _first_genres(movies: dict[str, Array], movie_ids: Array) -> Array:
    """The first genre of each movie by number, 0 for a movie that is not in ``movies``."""
    first = np.array([str(genres).partition("|")[0] for genres in movies["genres"]])
    by_movie = dict(zip(movies["movieId"].tolist(), (pd.factorize(first, sort=True)[0] + 1).tolist(), strict=True))
    seen, position = np.unique(movie_ids, return_inverse=True)
    genres: Array = np.array([by_movie.get(movie, 0) for movie in seen.tolist()], dtype=np.int16)[position]
    return genres
