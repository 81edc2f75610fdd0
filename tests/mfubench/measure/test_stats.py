"""The median and its bootstrap interval, against values known beforehand."""

import numpy as np
import pytest

from mfubench.measure import stats
from mfubench.measure.stats import (
    bimodal,
    bootstrap_median,
    dip,
    median_ci,
    percentile_interval,
    resampled,
    student_quantile,
    tail,
)


def test_one_sample_has_no_spread():
    assert median_ci([3.5]) == (3.5, 3.5, 3.5)


def test_equal_samples_have_no_spread():
    assert median_ci([2.0] * 9) == (2.0, 2.0, 2.0)


def test_the_interval_is_that_of_the_order_statistics(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 20000)
    # The bootstrap median of 0..100 is an order statistic; its binomial 95 % interval is 40 to 60.
    median, low, high = median_ci(list(range(101)))
    assert median == 50
    assert low == pytest.approx(40, abs=1) and high == pytest.approx(60, abs=1)


def test_the_interval_covers_the_true_median_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 400)
    rng = np.random.default_rng(1)
    intervals = [median_ci(rng.normal(size=40)) for _ in range(300)]
    covered = np.mean([low <= 0 <= high for _, low, high in intervals])
    assert 0.90 <= covered <= 0.99


def test_the_same_samples_give_the_same_interval():
    samples = np.random.default_rng(2).exponential(size=50)
    assert median_ci(samples) == median_ci(samples)
    assert (resampled(samples, seed=7) == resampled(samples, seed=7)).all()
    assert (resampled(samples, seed=7) != resampled(samples, seed=8)).any()


def test_the_percentile_interval_is_the_middle_95_percent():
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def test_an_outlier_does_not_move_the_median():
    assert median_ci([1.0, 1.0, 1.0, 1.0, 900.0])[0] == 1.0


@pytest.mark.parametrize("samples", [[], [[1.0, 2.0]], [1.0, float("nan")], [float("inf")]])
def test_what_has_no_median_is_refused(samples):
    with pytest.raises(ValueError, match="finite samples"):
        median_ci(samples)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.995, 10, 3.16927), (0.975, 15, 2.13145), (0.9995, 60, 3.4602)],
)
def test_students_quantiles_are_those_of_the_tables(probability, freedom, expected):
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("n", "alpha"), [(16, 0.05), (16, 0.002), (32, 0.05), (33, 0.01)])
def test_the_computed_bootstrap_is_what_resampling_converges_to(n, alpha):
    """Ends are the samples at which resampled medians, drawn, leave Student's tail outside."""
    ranks = np.arange(float(n))
    _, low, high = bootstrap_median(ranks, alpha)
    drawn = np.random.default_rng(0).integers(n, size=(200_000, n))
    medians = np.partition(drawn, (n + 1) // 2 - 1, axis=1)[:, (n + 1) // 2 - 1]  # of an even number the lower one
    t = student_quantile(1 - alpha / 2, n - 1) * np.sqrt(n / (n - 1))
    tail = np.mean(np.random.default_rng(1).normal(size=2_000_000) < -t)
    assert low == pytest.approx(np.quantile(medians, tail), abs=1) and high == n - 1 - low


@pytest.mark.parametrize(("n", "alpha", "below"), [(16, 0.05, 3), (32, 0.05, 9), (33, 0.05, 10), (33, 0.01, 9)])
def test_the_ends_of_an_interval_are_these_samples(n, alpha, below):
    """The last k of which P(Binomial(n, k/n) >= (n + 1) // 2) is at most P(z < -t sqrt(n / (n - 1))).

    Of 16 and 0.05: 0.0046 for k = 3, 0.0271 for k = 4, and 0.0139. Of 32: 0.0072, 0.0206 for k = 9 and 10, and 0.0191,
    which would be 0.0207 without the root. Of 33: 0.0087, 0.0235 for k = 10 and 11, and 0.0193.
    """
    assert bootstrap_median(list(range(n)), alpha)[1:] == (below, n - 1 - below)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_few_samples_cover_the_true_median_as_often_as_promised(draw):
    rng = np.random.default_rng(3)
    truth = {"normal": 0.0, "exponential": np.log(2.0)}[draw]
    for alpha, most in ((0.1, 0.11), (0.02, 0.025)):
        intervals = [bootstrap_median(getattr(rng, draw)(size=16), alpha) for _ in range(1000)]
        assert np.mean([not low <= truth <= high for _, low, high in intervals]) <= most


def test_the_bootstrap_interval_turns_and_shifts_with_its_samples():
    samples = np.random.default_rng(4).exponential(size=33)
    median, low, high = bootstrap_median(samples)
    assert bootstrap_median(-samples) == (-median, -high, -low)
    assert bootstrap_median(8 * samples) == (8 * median, 8 * low, 8 * high)
    assert {low, high} < set(samples) and low < median < high


def test_a_smaller_alpha_is_wider_down_to_all_samples():
    samples = list(range(16))
    widths = [high - low for _, low, high in (bootstrap_median(samples, alpha) for alpha in (0.3, 0.05, 1e-3, 1e-12))]
    assert widths == sorted(widths) and widths[0] < widths[1] < widths[2] and widths[3] == 15


@pytest.mark.parametrize("samples", [[], [1.0], [[1.0, 2.0]], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_has_no_bootstrap_interval_is_refused(samples):
    with pytest.raises(ValueError, match="two or more finite samples"):
        bootstrap_median(samples)


@pytest.mark.parametrize("alpha", [0, 1, -0.05])
def test_an_alpha_is_a_fraction(alpha):
    with pytest.raises(ValueError, match="alpha"):
        bootstrap_median([1.0, 2.0], alpha)


TWO_CLUSTERS = [10.0, 10.1, 10.2, 10.1, 10.0, 13.0, 13.1, 12.9, 13.0, 13.2]


@pytest.mark.parametrize(("samples", "expected"), [([1.0] * 10 + [2.0] * 10, 0.25), (np.arange(20.0), 1 / 40)])
def test_the_dip_of_two_points_is_a_quarter_and_that_of_a_ramp_one_step(samples, expected):
    assert dip(samples) == pytest.approx(expected)


def test_the_dip_has_neither_unit_nor_direction():
    """And is at least the half step by which a distribution function of samples is off any other."""
    generator = np.random.default_rng(3)
    for size in (4, 7, 12):
        x = generator.uniform(size=size)
        assert dip(x) >= 1 / (2 * size) - 1e-12
        assert dip(3.0 * x + 7.0) == pytest.approx(dip(x)) == pytest.approx(dip(-x))


def test_a_wider_gap_is_a_deeper_dip():
    depths = [dip([*range(10), *range(10 + gap, 20 + gap)]) for gap in (0, 5, 20, 1000)]
    assert depths == sorted(depths) and depths[0] == pytest.approx(1 / 40) and depths[-1] > 0.2


def mixture(generator, size, share, ratio, spread):
    slow = generator.uniform(size=size) < share
    return np.where(slow, ratio, 1.0) * generator.lognormal(0, spread, size) * 10


BIMODAL = {
    "half as slow again, 30 % apart": (0.5, 1.3, 0.01),
    "two bins of a runner": (0.5, 25.5 / 22.5, 0.004),
    "noisy but far apart": (0.5, 1.6, 0.03),
}


@pytest.mark.parametrize("case", BIMODAL)
def test_timings_with_two_modes_are_found(case):
    generator = np.random.default_rng(0)
    found = [bimodal(mixture(generator, 20, *BIMODAL[case])) for _ in range(60)]
    assert sum(modes is not None for modes in found) >= 50
    ratio = BIMODAL[case][1]
    assert all(modes.slow / modes.fast == pytest.approx(ratio, rel=0.1) for modes in found if modes)


UNIMODAL = {
    "normal": lambda generator, size: generator.normal(10, 0.3, size),
    "skewed": lambda generator, size: 10 + generator.exponential(3, size),
    "heavy tail": lambda generator, size: 10 * generator.lognormal(0, 1.2, size),
    "uniform": lambda generator, size: generator.uniform(5, 15, size),
    "two far off": lambda generator, size: np.r_[generator.normal(10, 0.1, size - 2), 40, 41],
    "a steady drift": lambda generator, size: np.linspace(10, 12, size) + generator.normal(0, 0.05, size),
}


@pytest.mark.parametrize("size", [10, 20, 60])
@pytest.mark.parametrize("case", UNIMODAL)
def test_timings_with_one_mode_are_not_taken_for_two(case, size):
    """However skewed, and however far off a few are: at most one in fifty."""
    generator = np.random.default_rng(1)
    found = [bimodal(UNIMODAL[case](generator, size)) is not None for _ in range(100)]
    assert sum(found) <= 2


def test_the_slow_ones_are_named():
    modes = bimodal(TWO_CLUSTERS * 2)
    assert modes.is_slow == (False,) * 5 + (True,) * 5 + (False,) * 5 + (True,) * 5
    assert (modes.fast, modes.slow) == (10.1, 13.0)


def test_modes_that_are_close_do_not_matter():
    assert bimodal([10.0] * 10 + [10.3] * 10) is None


@pytest.mark.parametrize("samples", [[1.0], [1.0, 2.0], [1.0, 1.0, 1.0], [5.0] * 30])
def test_few_or_equal_samples_have_one_mode(samples):
    assert bimodal(samples) is None


@pytest.mark.parametrize(
    ("num", "told"),
    [
        (1, [None, None, None, None]),
        (9, [5, None, None, None]),
        (10, [5, 9, None, None]),
        (99, [50, 90, None, None]),
        (100, [50, 90, 99, None]),
        (1000, [500, 900, 990, 999]),
    ],
)
def test_a_tail_is_told_where_samples_lie_beyond_it(num: int, told: list[int | None]) -> None:
    """Nearest rank, of 1 to ``num`` in any order."""
    assert list(tail([*range(num, 0, -2), *range(num - 1, 0, -2)]).values()) == told
    assert list(tail([1.0])) == ["50", "90", "99", "99.9"]
