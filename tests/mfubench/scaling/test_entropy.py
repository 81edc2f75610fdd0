"""Normalised entropy, and the two predictors that a model must beat."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfubench.data.kuairand import read_kuairand
from mfubench.data.logs import LogSource
from mfubench.data.movielens import read_movielens
from mfubench.errors import BadInput
from mfubench.scaling.baselines import SMOOTHING, item_mean, running_user_mean
from mfubench.scaling.entropy import normalised_entropy


@given(st.lists(st.booleans(), min_size=2, max_size=50).filter(lambda labels: 0 < sum(labels) < len(labels)))
def test_the_rate_itself_has_one_and_nothing_constant_has_less(labels: list[bool]) -> None:
    rate = sum(labels) / len(labels)
    assert normalised_entropy([rate] * len(labels), labels) == pytest.approx(1)
    for other in (0.01, 0.3, 0.9):
        assert normalised_entropy([other] * len(labels), labels) >= 1 - 1e-12


def test_by_hand() -> None:
    loss = -(math.log(0.8) + math.log(1 - 0.4) + math.log(0.5) + math.log(1 - 0.1)) / 4
    assert normalised_entropy([0.8, 0.4, 0.5, 0.1], [1, 0, 1, 0]) == pytest.approx(loss / math.log(2))
    by_training_rate = loss / -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert normalised_entropy([0.8, 0.4, 0.5, 0.1], [1, 0, 1, 0], base_rate=0.2) == pytest.approx(by_training_rate)


def test_certainty_is_bounded_and_does_not_lose_digits() -> None:
    assert normalised_entropy([1, 0], [1, 0]) == pytest.approx(0, abs=1e-11)
    wrong = normalised_entropy([0, 1], [1, 0])
    assert wrong == pytest.approx(12 * math.log(10) / math.log(2), rel=1e-4)
    small = np.full(1_000_000, 0.3, dtype=np.float32)  # summed in float64
    labels = np.arange(1_000_000) % 10 < 3
    assert normalised_entropy(small, labels) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("probabilities", "labels", "said"),
    [
        ([], [], "0 probabilities for 0 labels"),
        ([0.5], [1, 0], "1 probabilities for 2 labels"),
        ([0.5, 1.5], [1, 0], "not a number from 0 to 1; give probabilities, not logits"),
        ([0.5, math.nan], [1, 0], "not a number from 0 to 1"),
        ([0.5, 0.5], [1, 2], "neither 0 nor 1"),
        ([0.5, 0.5], [1, 1], "the base rate is 1; its entropy divides"),
    ],
)
def test_what_cannot_be_compared(probabilities: list[float], labels: list[int], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        normalised_entropy(probabilities, labels)


HEADER = "user_id,video_id,time_ms,is_click,is_follow,is_comment,is_forward,long_view,duration_ms,is_profile_enter"
T0 = 1_650_000_000_000
ROWS = [(1, 10, 0, 1), (1, 11, 1, 0), (2, 10, 2, 1), (2, 10, 3, 0), (1, 10, 7, 1), (1, 12, 8, 0), (3, 11, 9, 1)]


@pytest.fixture
def windows(tmp_path: Path) -> tuple[LogSource, LogSource]:
    """Four impressions to learn from (rate 1/2), then three: of items seen thrice, never and once."""
    lines = [f"{user},{item},{T0 + at},{click},0,0,0,0,1,0" for user, item, at, click in ROWS]
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return read_kuairand(tmp_path / "log.csv").split_by_time(0.5)


def test_item_mean_by_hand(windows: tuple[LogSource, LogSource]) -> None:
    k = SMOOTHING
    seen_thrice, never, once = (2 + k / 2) / (3 + k), 0.5, (0 + k / 2) / (1 + k)
    assert item_mean(*windows).tolist() == pytest.approx([seen_thrice, never, once])


def test_running_user_mean_by_hand(windows: tuple[LogSource, LogSource]) -> None:
    """User 1's second impression knows the first one of the same window; user 3 has no past."""
    k = SMOOTHING
    first, second, newcomer = (1 + k / 2) / (2 + k), (2 + k / 2) / (3 + k), 0.5
    assert running_user_mean(*windows).tolist() == pytest.approx([first, second, newcomer])


@pytest.mark.parametrize(
    ("read", "folder", "item", "user"),
    [(read_movielens, "ml-latest-small", 0.951, 0.825), (read_kuairand, "kuairand-slice", 0.931, 0.869)],
)
def test_the_known_figures(read, folder: str, item: float, user: float, test_data: Path) -> None:
    train, evaluation = read(test_data / folder).split_by_time(0.8)
    labels = evaluation.labels(evaluation.targets)
    assert normalised_entropy(item_mean(train, evaluation), labels) == pytest.approx(item, abs=5e-4)
    assert normalised_entropy(running_user_mean(train, evaluation), labels) == pytest.approx(user, abs=5e-4)
