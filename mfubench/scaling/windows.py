"""A log's impressions in two windows of time, to learn from and to predict, and what they tell without a model."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from mfu_models.common.config import SYNTHETIC_SCHEMAS
from mfubench.data import open_source
from mfubench.data.histories import Array
from mfubench.data.logs import LogSource
from mfubench.errors import BadInput

from .baselines import item_mean, running_user_mean
from .entropy import normalised_entropy

TRAIN_SHARE = 0.8
EVALUATED_SEED = 0  # of the impressions that stand for the later window: all models and seeds predict the same ones


@lru_cache(maxsize=1)  # reading a large log takes minutes, and a worker trains many models on it
def open_windows(data: str, evaluated: int | None = None) -> tuple[LogSource, LogSource]:
    """The first 80 % of a log's impressions in time, and the rest, or ``evaluated`` of the rest drawn at random.

    ``data``: kuairand:PATH or movielens:PATH.

    Raises:
        BadInput: the synthetic source, no such data, no impressions in a window, or labels that are all alike.
    """
    if data == "synthetic":
        raise BadInput(
            "--data synthetic: its labels are drawn from a formula and its batches from no log, so that nothing comes "
            "later to be predicted; give kuairand:PATH or movielens:PATH"
        )
    source = open_source(data, SYNTHETIC_SCHEMAS["tiny"])
    assert isinstance(source, LogSource)
    if not len(source.targets):
        raise BadInput(f"--data {data}: the log has no impressions of {source.schema.target}; give another one")
    first, second = source.split_by_time(TRAIN_SHARE)
    if evaluated is not None and evaluated < len(second.targets):
        second = sampled(second, EVALUATED_SEED, evaluated)
    for name, window in (("to learn from", first), ("to predict", second)):
        rate = float(window.labels(window.targets).mean())
        if not 0 < rate < 1:
            raise BadInput(
                f"--data {data}: all {len(window.targets)} impressions {name} have the label {rate:.0f}; "
                "NE needs both labels; give more of the log"
            )
    return first, second


def shuffled(source: LogSource, rng: np.random.Generator, samples: int | None) -> Array:
    """The rows of the window's impressions in random order, the first ``samples`` of it if that many are wanted."""
    rows: Array = rng.permutation(source.targets)[:samples]
    return rows


def sampled(source: LogSource, seed: int, samples: int) -> LogSource:
    """The window with so many of its impressions: those that a pass with this seed sees."""
    rows = np.sort(shuffled(source, np.random.default_rng(seed), samples))
    return replace(source, targets=rows, fingerprint=f"{source.fingerprint}-{samples}-drawn-by-{seed}")


def describe(windows: tuple[LogSource, LogSource]) -> dict[str, Any]:
    """What is known of two windows without a model: who they are, how many impressions, the rates of their labels."""
    source = windows[1]
    return {
        "description": source.description,
        "target": source.schema.target,
        "fingerprints": [window.fingerprint for window in windows],
        "impressions": [len(window.targets) for window in windows],
        "rates": [float(window.labels(window.targets).mean()) for window in windows],
        "users": [len(np.unique(window.log.users(window.targets))) for window in windows],
    }


def predictors(windows: tuple[LogSource, LogSource]) -> dict[str, float]:
    """The NE of the second window by what knows one number of each item, or of each user."""
    first, second = windows
    labels = second.labels(second.targets)
    return {
        "item_mean": normalised_entropy(item_mean(first, second), labels),
        "running_user_mean": normalised_entropy(running_user_mean(first, second), labels),
    }
