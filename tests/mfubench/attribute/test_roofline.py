"""The causes of one group of operators: line by line on numbers by hand, and always summing to its time."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfubench.attribute.hotspots import advice
from mfubench.attribute.roofline import VERDICTS, Ceilings, causes, verdict
from mfubench.measure.count import Work

# 1 GFLOP takes 1 ms at the datasheet's peak, 2 ms at the measured one, 8 ms in fp32; 1 MB takes 0.01 ms.
CEILINGS = Ceilings(in_use_tflops=1.0, measured_tflops=0.5, bandwidth_gb_s=100.0, by_dtype={"bf16": 0.5, "fp32": 0.125})
GFLOP, MB = 10**9, 10**6


def work(
    model: float, hardware: float, *, recomputed: float = 0, mbytes: float = 0, dtype: str | None = "bfloat16"
) -> Work:
    """Work in GFLOP and MB."""
    made = Work(
        model=round(model * GFLOP),
        hardware=round(hardware * GFLOP),
        recomputed=round(recomputed * GFLOP),
        bytes=round(mbytes * MB),
    )
    if dtype is not None:
        made.dtypes[dtype] = made.hardware
    return made


def split(time_ms: float, given: Work, kind: str = "gemm") -> dict[str, float]:
    """The causes that are not zero."""
    return {cause: ms for cause, ms in causes(time_ms, given, kind, CEILINGS).items() if ms}  # type: ignore[arg-type]


# Every line of the ledger, with what it is made of: t = 20 ms unless said otherwise.
LINES = {
    "compute only": (20, work(3, 3), {"useful": 3, "peak_gap": 3, "inefficiency.gemm": 14}),
    # E = 4, U = 3: a quarter of the time is padding; the rest is an op of 15 ms and 3 GFLOP.
    "padding": (20, work(3, 4), {"padding": 5, "useful": 3, "peak_gap": 3, "inefficiency.gemm": 9}),
    # X = 5, E = 4, U = 4.
    "recompute": (20, work(4, 5, recomputed=1), {"recompute": 4, "useful": 4, "peak_gap": 4, "inefficiency.gemm": 8}),
    # X = 8, E = 6, U = 3; what is useful is 3/8 of the time and of the bytes.
    "padding, recompute and bytes": (
        *(16, work(3, 8, recomputed=2, mbytes=1600)),
        {
            "padding": 6,
            "recompute": 4,
            "useful": 3,
            "peak_gap": 3,
        },  # useful part: 6 ms, 6 ms at the peak, 6 ms of bytes
    ),
    "memory-bound": (
        *(20, work(3, 3, mbytes=1500)),
        {"useful": 3, "peak_gap": 3, "memory_bound.gemm": 15 - 6, "inefficiency.gemm": 20 - 15},
    ),
    "another dtype": (
        *(30, work(2, 2, dtype="float32")),
        {"useful": 2, "peak_gap": 2, "dtype": 16 - 4, "inefficiency.gemm": 14},
    ),
    "another dtype that bytes hide behind": (
        *(30, work(2, 2, dtype="float32", mbytes=1800)),
        {"useful": 2, "peak_gap": 2, "dtype": 12, "memory_bound.gemm": 18 - 16, "inefficiency.gemm": 30 - 18},
    ),
    "a dtype of which no peak is known": (
        *(20, work(3, 3, dtype="float64")),
        {"useful": 3, "peak_gap": 3, "inefficiency.gemm": 14},
    ),
    "no matmul-like work": (20, Work(bytes=1500 * MB), {"memory_bound.gemm": 15, "inefficiency.gemm": 5}),
    "no work at all": (20, Work(), {"inefficiency.gemm": 20}),
    "faster than its floor": (5, work(3, 3), {"useful": 3, "peak_gap": 3, "inefficiency.gemm": -1}),
    "faster than its bytes": (5, Work(bytes=700 * MB), {"memory_bound.gemm": 7, "inefficiency.gemm": -2}),
    # Executed once for four samples: 4 GFLOP of model FLOPs, of which 3 took no time.
    "shared by a batch": (
        *(20, work(4, 1)),
        {"useful": 4, "amortized": -3, "peak_gap": 1, "inefficiency.gemm": 18},
    ),
    "useful work without a trace of execution": (
        *(20, work(4, 0)),
        {"useful": 4, "amortized": -4, "inefficiency.gemm": 20},
    ),
    "useful work fused into another kernel": (0, work(3, 3), {"useful": 3, "peak_gap": 3, "inefficiency.gemm": -6}),
}


@pytest.mark.parametrize(("time_ms", "given", "expected"), LINES.values(), ids=LINES.keys())
def test_the_lines_of_one_group(time_ms: float, given: Work, expected: dict[str, float]) -> None:
    found = split(time_ms, given)
    assert found == pytest.approx(expected)
    assert sum(found.values()) == pytest.approx(time_ms)


def test_lines_carry_the_class_of_the_operator() -> None:
    assert split(20, Work(bytes=MB), "norm").keys() == {"memory_bound.norm", "inefficiency.norm"}


def test_the_dtype_of_most_of_the_work_counts() -> None:
    mixed = work(3, 3)
    mixed.dtypes["float32"] = mixed.hardware // 10
    assert "dtype" not in split(20, mixed)
    assert split(20, work(3, 3, dtype=None)) == split(20, work(3, 3))


whole = st.integers(0, 10**13)


@settings(deadline=None, database=None)
@given(
    time_ms=st.floats(0, 1e5),
    model=whole,
    hardware=whole,
    repeated=st.floats(0, 1),
    moved=whole,
    dtype=st.sampled_from(["bfloat16", "float32", "float64"]),
)
def test_causes_always_sum_to_the_time(
    time_ms: float, model: int, hardware: int, repeated: float, moved: int, dtype: str
) -> None:
    """The ledger's promise; only a faster kernel than its floor, or shared work, makes a line negative."""
    given = Work(model=model, hardware=hardware, recomputed=int(hardware * repeated), bytes=moved)
    given.dtypes[dtype] = hardware
    found = causes(time_ms, given, "attention", CEILINGS)
    size = max(time_ms, CEILINGS.flop_ms(max(model, hardware), 0.125), CEILINGS.byte_ms(moved))
    assert math.isclose(sum(found.values()), time_ms, abs_tol=1e-9 * max(size, 1))
    negative = {cause for cause, ms in found.items() if ms < 0}
    assert negative <= {"amortized", "inefficiency.attention"}
    assert ("amortized" in negative) == (model > hardware - given.recomputed)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"useful": 2.0, "peak_gap": 2.0, "launch": 3.0}, "compute-bound"),
        ({"useful": 2.0, "launch": 3.0}, "launch-bound"),
        ({"memory_bound.norm": 2.0, "memory_bound.copy": 2.0, "useful": 3.0}, "memory-bound"),
        ({"inefficiency.gemm": 5.0, "inefficiency.copy": -3.0, "padding": 4.0}, "padding-bound"),
        ({"inefficiency.gemm": 5.0, "recompute": 4.0}, "inefficient"),
        ({"recompute": 5.0, "dtype": 4.0}, "recompute-bound"),
        ({"dtype": 5.0, "useful": 4.0}, "dtype-bound"),
        ({"optimizer": 5.0}, "optimizer"),
        ({"inefficiency.gemm": -1.0}, "idle"),
        ({}, "idle"),
    ],
)
def test_a_verdict_is_the_largest_family_of_causes(given: dict[str, float], expected: str) -> None:
    assert verdict(given) == expected


def test_every_cause_with_a_remedy_names_it() -> None:
    for family in VERDICTS:
        assert bool(advice(family)) == (family not in ("useful", "peak_gap"))
    assert advice("memory_bound.norm") != advice("memory_bound.gemm") == advice("memory_bound")


def test_rates() -> None:
    assert CEILINGS.flop_ms(3 * GFLOP, 1.5) == 2.0 and CEILINGS.byte_ms(200 * MB) == 2.0


def test_what_is_computed_and_asked_for_by_nobody_is_no_padding() -> None:
    """As a recurrence's backward makes the gradient of its first state."""
    work = Work(model=3 * 10**9, hardware=4 * 10**9, unwanted=10**9, bytes=0)
    split = causes(10.0, work, "rnn", CEILINGS)
    assert split["padding"] == 0 and sum(split.values()) == pytest.approx(10.0)
    assert split["inefficiency.rnn"] == pytest.approx(10.0 - CEILINGS.flop_ms(3 * 10**9, CEILINGS.measured_tflops))


def test_work_of_two_dtypes_has_the_peak_of_the_one_with_most_flops() -> None:
    """Whichever came first."""
    mixed = Work(hardware=10 * GFLOP)
    mixed.dtypes |= {"float32": 1 * GFLOP, "bfloat16": 9 * GFLOP}
    assert CEILINGS.own_tflops(mixed) == 0.5 and CEILINGS.least_ms(mixed) == pytest.approx(20.0)


@pytest.mark.parametrize(("dtype", "tflops"), [("float32", 1), ("bfloat16", 2), ("float16", 3), ("float64", 4)])
def test_each_dtype_has_its_own_peak(dtype: str, tflops: float) -> None:
    ceilings = Ceilings(9.0, 9.0, 1.0, {"fp32": 1, "bf16": 2, "fp16": 3, "fp64": 4})
    assert ceilings.own_tflops(work(1, 1, dtype=dtype)) == tflops
