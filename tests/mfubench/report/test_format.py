import math

import pytest

from mfubench.report import format as fmt

NBSP = "\u00a0"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (0.0, "0"),
        (12.345, "12.3"),
        (0.0123456, "0.0123"),
        (-0.5, "-0.500"),
        (2604.2, f"2{NBSP}604"),
        (1234567.0, f"1{NBSP}234{NBSP}567"),
        (None, "n/a"),
        (math.nan, "n/a"),
    ],
)
def test_a_number_has_three_significant_digits_and_keeps_those_before_the_point(given, text):
    assert fmt.number(given) == text


def test_a_column_shares_its_decimals_and_lets_nothing_vanish():
    assert fmt.column([12.344, 0.4, 0.0, -0.0042, None], digits=4) == ["12.34", "0.40", "0", "-0.004", "n/a"]


def test_a_column_of_shares_keeps_a_decimal_also_where_one_is_the_whole():
    assert fmt.percents([1.0, 0.543, 0.00004]) == ["100.0", "54.3", "0.004"]


def test_a_column_without_numbers_is_all_not_known():
    assert fmt.column([None, None]) == ["n/a", "n/a"] and fmt.column([]) == []


@pytest.mark.parametrize(
    ("flops", "text"),
    [(0, "0 FLOP"), (999, "999 FLOP"), (10**9, "1.00 GFLOP"), (2.5e15, "2.50 PFLOP"), (10**19, f"10{NBSP}000 PFLOP")],
)
def test_flops_take_the_thousands_that_fit(flops, text):
    assert fmt.flops(flops) == text


def test_bytes_take_the_binary_thousands_that_fit():
    assert (fmt.size(0), fmt.size(1536), fmt.size(8 * 1024**3)) == ("0 B", "1.50 KiB", "8.00 GiB")


def test_an_interval_stands_beside_its_value_with_the_same_decimals():
    assert fmt.interval(12.34, 12.1, 12.601, "ms") == "12.34 ms [12.10, 12.60]"


def test_what_is_not_known_says_why():
    assert fmt.percent(None, "no datasheet peak") == "n/a (no datasheet peak)"
    assert fmt.percent(None) == "n/a"


@pytest.mark.parametrize(
    ("key", "given", "label", "text"),
    [
        ("memory_bytes", 1024**3, "memory", "1.00 GiB"),
        ("measured_tflops", 712.25, "measured TFLOP/s", "712.2"),
        ("bandwidth_gb_s", 20.0, "bandwidth GB/s", "20.00"),
        ("sm_clock_mhz", {"unavailable": "no driver"}, "sm clock", "n/a (no driver)"),
        ("energy", {"value": 71.52, "unit": "J", "window_s": 1.0}, "energy", "71.5 J"),
        ("num_params", 50_331_648, "num params", f"50{NBSP}331{NBSP}648"),
        ("seed", 20260203, "seed", "20260203"),
        ("git_dirty", False, "git dirty, of mfubench", "no"),
        ("git_sha", None, "git sha of mfubench", "n/a"),
        ("model_git_sha", "abc", "git sha of the model's code", "abc"),
        ("overrides", {"ffn": "gdpa", "rote": True}, "overrides", "ffn=gdpa, rote=yes"),
        ("overrides", {}, "overrides", "none"),
        ("names", ["a", "b"], "names", "a, b"),
    ],
)
def test_any_value_of_a_document_reads_as_words(key, given, label, text):
    assert (fmt.label(key), fmt.value(key, given)) == (label, text)


@pytest.mark.parametrize(("number", "text"), [(0, "0 targets"), (1, "1 target"), (1200, f"1{NBSP}200 targets")])
def test_one_is_counted_in_the_singular(number, text):
    assert fmt.counted(number, "targets") == text
