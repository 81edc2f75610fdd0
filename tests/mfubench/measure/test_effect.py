"""What two steps that were timed in turn differ by."""

import math

import pytest

from mfubench.measure.effect import log_ratios


def test_a_block_counts_both_runs_and_the_samples() -> None:
    """Old 10 ms for 4 samples, new 16 ms for 8: 1.25 times as fast."""
    (found,) = log_ratios([(8.0, 12.5)], [(16.0, 16.0)], lambda block: 8 / 4)
    assert math.exp(found) == pytest.approx(2 * 10 / 16)


def test_without_word_of_samples_both_have_as_many() -> None:
    assert log_ratios([(4.0, 9.0), (1.0, 1.0)], [(3.0, 3.0), (1.0, 4.0)]) == pytest.approx([math.log(2), -math.log(2)])
