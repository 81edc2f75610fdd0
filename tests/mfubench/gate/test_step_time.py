"""The row of a step's time, of pairs made by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from mfubench.gate.rows import Row
from mfubench.gate.step_time import time_row
from mfubench.gate.timing import Pair

MARGIN = 0.03
SLOWER = [0.1, 0.101, 0.099, 0.1]
BESIDE = [
    Row("PASS", "net", "model", "bytes", 1, 1, ""),
    Row("CHANGED", "net", "kernels", "registers", 64, 80, "registers 64 to 80", subject="scores on sm_90"),
]


def row_of(logs: Sequence[float], same_code: bool = False) -> tuple[Row, Any]:
    had = [Pair(log, 0.01 * (at + 1), [1.0, 1.0], [math.exp(log)] * 2) for at, log in enumerate(logs)]
    return time_row("net", had, MARGIN, 0.05, same_code=same_code, beside=BESIDE)


def test_a_slower_step_fails_with_its_interval_and_with_what_changed_beside_it() -> None:
    row, timing = row_of(SLOWER)
    assert row.verdict == "FAIL" and row.ratio and row.ratio[1] > 1.03 and timing["pairs"] == 4
    assert row.base == 1.0 and row.head == pytest.approx(math.exp(0.1), rel=0.01)
    assert row.why == f"{timing['why']}; beside it, scores on sm_90: registers 64 to 80"
    assert len(timing["samples"]) == 4 and timing["ratios_of_pairs"] == pytest.approx([math.exp(log) for log in SLOWER])


def test_what_is_slower_in_the_same_code_is_the_environments() -> None:
    (row, timing), (failed, as_before) = row_of(SLOWER, same_code=True), row_of(SLOWER)
    assert row.verdict == "ENVIRONMENT" and "the same code" in row.why and row.why.endswith(failed.why)
    assert row.ratio == failed.ratio and timing == as_before


@pytest.mark.parametrize(
    ("logs", "verdict"), [([0.0, 0.001, -0.001, 0.0], "PASS"), ([-0.1, -0.11, -0.1, -0.09], "IMPROVED")]
)
def test_what_is_not_slower_blames_nothing(logs: list[float], verdict: str) -> None:
    for same_code in (False, True):
        row, timing = row_of(logs, same_code)
        assert (row.verdict, row.why) == (verdict, timing["why"])


def test_when_the_budget_ends_it_says_so() -> None:
    row, timing = row_of([0.1])
    assert row.verdict == "INCONCLUSIVE" and "one pair" in row.why and timing is None
    row, timing = row_of([0.1, 0.5, 0.1])
    assert row.verdict == "INCONCLUSIVE" and "after 3 of 16 pairs" in row.why and timing["pairs"] == 3


def test_what_is_clear_before_its_look_counts_when_the_budget_ends() -> None:
    row, _ = row_of(SLOWER[:3])
    assert row.verdict == "FAIL" and "after 3 of 16 pairs" in row.why


def test_a_look_that_the_budget_forces_has_no_more_of_the_risk() -> None:
    """0.1 with a standard error of 0.0133: Student's t is 4.303 for all of the 5 % of risk, 7.649 for a third of it."""
    row, _ = row_of([0.077, 0.1, 0.123])
    assert row.verdict == "INCONCLUSIVE" and row.ratio is not None
    reach = 7.649 * 0.023 / math.sqrt(3)
    assert row.ratio == pytest.approx((math.exp(0.1), math.exp(0.1 - reach), math.exp(0.1 + reach)), rel=1e-4)


def test_base_against_itself_is_the_noise_of_its_own_turns() -> None:
    """0.01, 0.02, 0.03 and 0.04, whatever head took: 0.025 with 3.182 times a standard error of 0.00645 around it."""
    _, timing = row_of(SLOWER)
    assert timing["against_itself"] == pytest.approx(
        [math.exp(0.025 + sign * 0.02054) for sign in (0, -1, 1)], rel=1e-4
    )
