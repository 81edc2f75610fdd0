"""The median and its bootstrap interval, against values known beforehand."""

import numpy as np
import pytest

from mfubench.measure.stats import median_ci


def test_one_sample_has_no_spread():
    assert median_ci([3.5]) == (3.5, 3.5, 3.5)


def test_equal_samples_have_no_spread():
    assert median_ci([2.0] * 9) == (2.0, 2.0, 2.0)


def test_the_interval_is_that_of_the_order_statistics():
    # The bootstrap median of 0..100 is an order statistic; its binomial 95 % interval is 40 to 60.
    median, low, high = median_ci(list(range(101)), resamples=20000)
    assert median == 50
    assert low == pytest.approx(40, abs=1) and high == pytest.approx(60, abs=1)


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [median_ci(rng.normal(size=40), resamples=400) for _ in range(300)]
    covered = np.mean([low <= 0 <= high for _, low, high in intervals])
    assert 0.90 <= covered <= 0.99


def test_a_higher_level_is_wider_and_a_seed_repeats_itself():
    samples = np.random.default_rng(2).exponential(size=50)
    _, low90, high90 = median_ci(samples, level=0.90)
    _, low99, high99 = median_ci(samples, level=0.99)
    assert low99 < low90 < high90 < high99
    assert median_ci(samples, seed=7) == median_ci(samples, seed=7)


def test_an_outlier_does_not_move_the_median():
    assert median_ci([1.0, 1.0, 1.0, 1.0, 900.0])[0] == 1.0


@pytest.mark.parametrize("samples", [[], [[1.0, 2.0]], [1.0, float("nan")], [float("inf")]])
def test_what_has_no_median_is_refused(samples):
    with pytest.raises(ValueError, match="finite samples"):
        median_ci(samples)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_fraction(level):
    with pytest.raises(ValueError, match="level"):
        median_ci([1.0], level=level)
