"""What rows come to, and what the process ends with."""

from dataclasses import replace

import pytest

from mfubench.gate.rows import VERDICTS, Outcome, Row, Verdict


def rows(*verdicts: Verdict) -> list[Row]:
    return [Row(verdict, "net:build", "model", "bytes", 1, 1, "") for verdict in verdicts]


def test_the_worst_comes_first() -> None:
    outcome = Outcome.of(rows(*reversed(VERDICTS)))
    assert [row.verdict for row in outcome.rows] == list(VERDICTS) and outcome.verdict == "FAIL"
    assert outcome.counted == dict.fromkeys(VERDICTS, 1)
    assert Outcome.of([]).verdict == "PASS"


@pytest.mark.parametrize(
    ("verdicts", "strict", "required", "code"),
    [
        (("PASS", "CHANGED", "IMPROVED"), True, True, 0),
        (("INCONCLUSIVE", "ENVIRONMENT", "NO_BASELINE"), False, False, 0),
        (("INCONCLUSIVE",), True, False, 3),
        (("ENVIRONMENT",), True, False, 3),
        (("NO_BASELINE", "INCONCLUSIVE"), True, True, 4),
        (("ERROR", "NO_BASELINE"), True, True, 5),
        (("FAIL", "ERROR"), False, False, 1),
    ],
)
def test_exit_codes(verdicts: tuple[Verdict, ...], strict: bool, required: bool, code: int) -> None:
    assert Outcome.of(rows(*verdicts)).exit_code(strict=strict, require_baseline=required) == code


def test_only_a_fail_is_made_a_change_by_its_waiver() -> None:
    passed, failed = (replace(row, waived="until 2999-12-31") for row in rows("PASS", "FAIL"))
    assert (passed.counts, failed.counts) == ("PASS", "CHANGED")
    assert Outcome.of([passed]).verdict == "PASS" and Outcome.of([passed, failed]).counted == {"CHANGED": 1, "PASS": 1}
