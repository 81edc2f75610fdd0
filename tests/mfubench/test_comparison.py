"""Runs side by side: intervals that cover what they should, ledgers that add up, and what must not be compared."""

import json
from typing import Any

import numpy as np
import pytest

from mfubench.comparison import (
    Estimate,
    Row,
    compare,
    differences,
    energy_per_sample,
    mean_rate,
    ratio_apart,
    ratio_in_turn,
    require_comparable,
)
from mfubench.errors import BadInput
from mfubench.run import LedgerLine
from tests.mfubench.report.factory import a_gpu_run, a_run, some_counters


def timed(*timings_ms: Any) -> Any:
    return a_run(step={"timings_ms": list(timings_ms)})


def test_a_ratio_apart_is_that_of_the_medians() -> None:
    ratio = ratio_apart([10.0, 11.0, 30.0], [22.0, 21.0, 90.0])
    assert ratio.value == 2.0 and ratio.ci95_low < 2.0 < ratio.ci95_high


def test_a_ratio_apart_of_steady_runs_has_no_spread() -> None:
    ratio = ratio_apart([10.0] * 5, [5.0] * 7)
    assert (ratio.value, ratio.ci95_low, ratio.ci95_high) == (0.5, 0.5, 0.5)


def test_the_interval_of_a_ratio_apart_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    ratios = [ratio_apart(rng.lognormal(0, 0.3, 30), 1.2 * rng.lognormal(0, 0.3, 30)) for _ in range(200)]
    covered = np.mean([ratio.ci95_low <= 1.2 <= ratio.ci95_high for ratio in ratios])
    assert 0.90 <= covered <= 0.995


def test_a_ratio_in_turn_is_free_of_what_both_sides_share() -> None:
    """A machine that becomes ten times slower is in both sides of each round, and so in no ratio."""
    pace = np.linspace(1, 10, 20)
    in_turn, apart = ratio_in_turn(2 * pace, 3 * pace), ratio_apart(2 * pace, 3 * pace)
    assert in_turn.value == pytest.approx(1.5) and in_turn.ci95_high - in_turn.ci95_low < 1e-9
    assert apart.ci95_high - apart.ci95_low > 0.5


def test_a_rates_interval_is_that_of_the_mean() -> None:
    rng = np.random.default_rng(5)
    timings = rng.normal(10, 1, 400)
    rate = mean_rate(list(timings))
    error = timings.std() / timings.mean() / 20  # the relative standard error of the mean
    assert rate.value == 1
    assert 1 - rate.ci95_low == pytest.approx(1.96 * error, rel=0.15)
    assert rate.ci95_high - 1 == pytest.approx(1.96 * error, rel=0.15)


def test_a_row_keeps_the_runs_own_numbers() -> None:
    run = a_gpu_run(flops={"per_request": 65e6})
    row = Row.of(run)
    assert row.samples_per_s.value == run.step["samples_per_s"] and row.mfu is not None and row.mfu.value == run.mfu
    assert row.mfu.ci95_low < row.mfu.value < row.mfu.ci95_high
    assert row.mfu_of_measured_peak.value == run.mfu_of_measured_peak
    assert (row.model_flops_per_sample, row.num_params) == (65e6, 50_331_648)
    assert row.peak_bytes == run.memory["peak_bytes"]
    assert Row.of(a_run()).mfu is None and Row.of(a_run()).model_flops_per_sample is None


def test_each_column_of_a_row_is_its_own_number() -> None:
    """Two steps of 10 and 30 ms: resampled, their mean is 10, 20 or 30, so a rate is from 2/3 to 2 times the Run's."""
    run = a_gpu_run(
        workload={"num_params": 900, "dense_params": 50},
        step={
            "time_ms": {"median": 20.0, "ci95_low": 11.0, "ci95_high": 29.0},
            "samples_per_s": 300.0,
            "timings_ms": [10.0, 30.0],
            "loader": {"samples_per_s": 200.0},
        },
        flops={"per_request": 65e6},
        memory={"peak_bytes": 7000},
        mfu=0.03,
        hfu=0.06,
        mfu_of_measured_peak=0.09,
        hfu_of_measured_peak=0.12,
        nvml=some_counters(energy={"joules_per_sample": 0.5}),
    )

    def of_the_mean(value: float) -> Estimate:
        return Estimate(value, pytest.approx(value * 2 / 3), pytest.approx(value * 2))

    assert Row.of(run) == Row(
        title=run.title,
        time_ms=Estimate(20.0, 11.0, 29.0),
        samples_per_s=of_the_mean(300.0),
        fed_samples_per_s=200.0,
        mfu=of_the_mean(0.03),
        hfu=of_the_mean(0.06),
        mfu_of_measured_peak=of_the_mean(0.09),
        hfu_of_measured_peak=of_the_mean(0.12),
        model_flops_per_sample=65e6,
        num_params=900,
        dense_params=50,
        peak_bytes=7000,
        energy_j_per_sample=0.5,
        energy_not_measured="",
    )


def test_energy_is_that_of_the_nvml_window() -> None:
    energy = {"value": 1302.1, "unit": "J", "window_s": 5.0, "joules_per_sample": 0.1}
    assert energy_per_sample(a_run(nvml={"available": True, "counters": {}, "energy": energy})) == (0.1, "")


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        ({"available": False, "reason": "no NVIDIA driver"}, "no NVIDIA driver"),
        ({"available": True, "energy": {"value": None, "unavailable": "too short"}}, "too short"),
        ({"available": True, "energy": {"value": None, "window_s": 6.0}}, "counts no energy"),
        ({"available": True}, "counts no energy"),
    ],
)
def test_energy_that_was_not_measured_says_why(nvml: dict[str, Any], reason: str) -> None:
    run = a_run()
    run.nvml = nvml
    energy, why_not = energy_per_sample(run)
    assert energy is None and reason in why_not


CHANGES: dict[str, dict[str, Any]] = {
    "device": {"environment": {"device_name": "another"}},
    "dtype": {"workload": {"dtype": "bf16"}},
    "mode": {"workload": {"mode": "infer"}},
    "data_hash": {"workload": {"data_hash": "another"}},
}
ALLOWED: tuple[dict[str, Any], ...] = (
    {"workload": {"model": "dlrm"}},
    {"workload": {"impl": "triton"}},
    {"workload": {"compile": "model"}},
    {"workload": {"model_hash": "another"}},
    {"environment": {"torch": "2.14"}},
)


def test_options_that_gave_other_data_are_named() -> None:
    other = a_run(workload={"data_hash": "another", "batch_size": 4, "data": "movielens:PATH"})
    batch_size, data = (a_run().workload[key] for key in ("batch_size", "data"))
    with pytest.raises(BadInput, match=rf"\(data {data}, movielens:PATH; batch_size {batch_size}, 4\)"):
        require_comparable({"a": a_run(), "b": other})


def test_batches_that_no_option_made_other_are_told() -> None:
    """Of a model of the user's, and of fewer batches in turn."""
    own = {"size": None, "data": "synthetic"}
    one, other = a_run(workload=own), a_run(workload={**own, "data_hash": "another"})
    with pytest.raises(BadInput, match=r"\(their batches have other shapes, lengths, ids or masks"):
        require_comparable({"a": one, "b": other})
    four, two = (a_run(workload={"data_hash": f"of {n}"}, step={"num_input_sets": n}) for n in (4, 2))
    with pytest.raises(BadInput, match=r"\(batches in turn 4, 2\)"):
        require_comparable({"a": four, "b": two})


@pytest.mark.parametrize("key", CHANGES)
def test_what_must_agree(key: str) -> None:
    runs = [a_run(), a_run(**CHANGES[key])]
    assert list(differences(runs)) == [key]
    with pytest.raises(BadInput, match=f"these differ: {key}: .*--force"):
        require_comparable(dict(zip("ab", runs, strict=True)))
    require_comparable(dict(zip("ab", runs, strict=True)), force=True)
    assert compare(runs).apart.keys() == {key}
    assert compare(runs).to_document(runs)["comparable"] is False


@pytest.mark.parametrize("changes", ALLOWED)
def test_what_may_differ(changes: dict[str, Any]) -> None:
    require_comparable({"a": a_run(), "b": a_run(**changes)})


@pytest.mark.parametrize("force", [False, True])
def test_one_run_and_the_same_run_compare_with_nothing(force: bool) -> None:
    with pytest.raises(BadInput, match="two or more"):
        require_comparable({"a": a_run()}, force=force)
    with pytest.raises(BadInput, match="b and c are the same run"):
        require_comparable({"a": a_gpu_run(), "b": a_run(), "c": a_run()}, force=force)


@pytest.mark.parametrize("wrong", [[], [10.0, 0.0], [10.0, -1.0], [float("nan")], ["10"], [True], [None]])
def test_timings_that_are_none_are_refused(wrong: list[Any]) -> None:
    with pytest.raises(BadInput, match=r"kunlun small train fp32 holds .*profile it again"):
        compare([a_run(), timed(*wrong)])


def test_the_baseline_is_what_the_others_are_held_against() -> None:
    runs = [timed(10.0), timed(20.0), timed(40.0)]
    assert [ratio.value for ratio in compare(runs).time_ratios] == [1, 2, 4]
    assert [ratio.value for ratio in compare(runs, baseline=1).time_ratios] == [0.5, 1, 2]


def with_ledger(**ms: float) -> Any:
    lines = [LedgerLine(cause.replace("__", "."), time, time / 10, []) for cause, time in ms.items()]
    return a_run(ledger=lines)


def test_ledgers_are_joined_cause_by_cause_and_still_add_up() -> None:
    first = with_ledger(useful=4.0, memory_bound__norm=2.0, memory_bound__copy=1.0, not_attributed=0.5)
    second = with_ledger(useful=3.0, dtype=1.0, memory_bound__copy=2.0, launch=0.25, not_attributed=0.1)
    lines = compare([first, second]).ledger
    assert [line.cause for line in lines] == [
        *("useful", "dtype", "memory_bound.norm", "memory_bound.copy", "launch", "not_attributed"),
    ]
    for at, run in enumerate((first, second)):
        assert sum(line.ms[at] for line in lines) == pytest.approx(sum(line.ms for line in run.ledger))
    more = {line.cause: line.more_ms for line in lines}
    assert more["useful"] == [0, -1] and more["dtype"] == [0, 1] and more["memory_bound.norm"] == [0, -2]


def test_the_document_has_each_runs_pedigree() -> None:
    runs = [a_run(), a_run(workload={"impl": "triton"}, step={"timings_ms": [6.0]})]
    document = json.loads(json.dumps(compare(runs).to_document(runs)))
    assert document["comparable"] is True and document["baseline"] == 0
    for given, run in zip(document["runs"], runs, strict=True):
        assert given["workload"] == run.workload and given["environment"] == run.environment
        assert given["peak"] == run.peak and given["nvml"] == run.nvml
    assert document["runs"][1]["time_ratio"]["value"] == pytest.approx(6 / 12.34)
