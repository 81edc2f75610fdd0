"""The measured peak: plausible on a CPU, kept per device and method, and never a reason to fail."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from mfubench.errors import BadInput, UnknownAccelerator
from mfubench.measure import calibrate as calibration_module
from mfubench.measure.calibrate import (
    PLANS,
    Calibration,
    Plan,
    adopt,
    calibrate,
    kept_calibration,
    load_or_calibrate,
    peaks_by_dtype,
)
from mfubench.measure.peaks import datasheet

CPU = torch.device("cpu")
TINY = Plan(shapes=((32, 32, 32), (64, 64, 64)), limit_s=1.0, repeats=3, warmup=1, copy_bytes=1 << 20)


def kept(**changes) -> Calibration:
    return load_or_calibrate(CPU, "fp32", **changes)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A file of the test's own, and a method that is quick."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "deep"))
    monkeypatch.setitem(PLANS, "cpu", TINY)
    monkeypatch.setattr(calibration_module, "_adopted", {})
    return tmp_path / "deep" / "mfubench" / "calibration.json"


def test_the_peak_is_the_best_shape_at_its_median():
    found = calibrate(CPU, ["fp32", "bf16"], plan=TINY)
    for dtype in ("fp32", "bf16"):
        rates = [2 * n**3 / sorted(found.samples[f"{dtype} {n}x{n}x{n}"])[1] / 1e9 for n in (32, 64)]
        assert found.gemm_tflops[dtype] == pytest.approx(max(rates))
    copy_ms = sorted(found.samples["copy 1048576 bytes"])[1]
    assert found.copy_gb_s == pytest.approx(2 * 2**20 / copy_ms / 1e6)
    assert found.threads == torch.get_num_threads() and found.torch == torch.__version__
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


def test_a_slow_device_skips_the_large_shapes():
    slow = Plan(shapes=((32, 32, 32), (4096, 4096, 4096)), limit_s=1e-3, repeats=1, warmup=1, copy_bytes=1 << 20)
    assert set(calibrate(CPU, ["fp32"], plan=slow).samples) == {"fp32 32x32x32", "copy 1048576 bytes"}


def test_random_state_and_precision_stay_as_they_were():
    state, precision = torch.get_rng_state(), torch.backends.cuda.matmul.fp32_precision
    calibrate(CPU, ["fp32"], plan=TINY)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.backends.cuda.matmul.fp32_precision == precision


@pytest.mark.parametrize("dtype", ["tf32", "fp16", "fp8", "float32"])
def test_a_dtype_the_cpu_does_not_have_is_refused(dtype, cache):
    with pytest.raises(BadInput, match="allowed: fp32, bf16"):
        calibrate(CPU, [dtype])
    with pytest.raises(BadInput, match="allowed: fp32, bf16"):
        load_or_calibrate(CPU, dtype)


def test_another_kind_of_device_is_refused():
    with pytest.raises(BadInput, match="meta"):
        calibrate(torch.device("meta"), ["fp32"])


def test_a_kept_calibration_is_read_back(cache):
    first = kept()
    assert kept() == first
    assert kept(refresh=True) != first
    assert kept() != first
    assert [path.name for path in cache.parent.iterdir()] == ["calibration.json"]


def on_a_processor(monkeypatch, share, call_s=2.0):
    """All threads have this share of every call's time."""
    threads = torch.get_num_threads()
    clock = (call_s / 2 * tick for tick in range(10**6))  # two clocks are read in turn
    monkeypatch.setattr("mfubench.measure.calibrate.BUSY", 0.8)
    monkeypatch.setattr("mfubench.measure.calibrate.perf_counter", lambda: next(clock))
    monkeypatch.setattr("mfubench.measure.calibrate.process_time", lambda: next(clock) * share * threads)


def test_what_a_busy_machine_reached_is_told_and_not_kept(cache, monkeypatch):
    on_a_processor(monkeypatch, 0.5)
    found = kept()
    assert found.busy and found.cpu_share == pytest.approx(0.5)
    assert not cache.exists()
    on_a_processor(monkeypatch, 0.9)
    assert not kept().busy
    assert kept_calibration(CPU, "fp32") == kept()


def test_what_was_reached_beside_others_on_the_gpu_is_not_kept(cache, monkeypatch):
    monkeypatch.setattr("mfubench.measure.calibrate.other_processes", lambda uuid: 2)
    assert kept().busy == "2 other processes on the GPU" and not cache.exists()
    monkeypatch.setattr("mfubench.measure.calibrate.other_processes", lambda uuid: None)
    assert not kept().busy and cache.exists()


def test_short_calls_say_nothing_of_the_machine(cache, monkeypatch):
    """One thread alone does a small product, and the other's share of its time is nothing."""
    on_a_processor(monkeypatch, 0.5, call_s=1e-3)
    found = kept()
    assert found.cpu_share is None and not found.busy


def test_another_dtype_thread_count_or_method_is_another_calibration(cache, monkeypatch):
    first = kept()
    load_or_calibrate(CPU, "bf16")
    with monkeypatch.context() as patch:
        patch.setitem(PLANS, "cpu", Plan(((48, 48, 48),), 1.0, 3, 1, 1 << 20))
        assert kept().how != first.how
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert kept().threads == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert len(json.loads(cache.read_text())) == 4
    assert kept() == first


def test_a_calibration_is_only_looked_up(cache):
    assert kept_calibration(CPU, "fp32") is None and not cache.exists()
    first = kept()
    assert kept_calibration(CPU, "fp32") == first
    assert kept_calibration(CPU, "bf16") is None
    with pytest.raises(BadInput, match="allowed: fp32, bf16"):
        kept_calibration(CPU, "fp8")


def test_an_adopted_calibration_holds_before_a_kept_one(cache):
    first = kept()
    better = replace(first, gemm_tflops={"fp32": 1000.0})
    adopt(better)
    adopt(replace(better, device_name="another device", gemm_tflops={"fp32": 1.0}))
    assert kept_calibration(CPU, "fp32") == load_or_calibrate(CPU, "fp32") == better


def test_peaks_are_listed_by_dtype_beside_the_datasheet(own_cache, calibrated):
    """The run's own, what is kept of the others, and None for what nobody measured yet."""
    sheet = datasheet("NVIDIA H100 80GB HBM3")
    fp32, bf16 = peaks_by_dtype(CPU, calibrated, sheet, {"fp32"})
    assert fp32["measured_tflops"] == calibrated.gemm_tflops["fp32"] and fp32["measured_date"] == calibrated.date
    assert (fp32["datasheet_tflops"], fp32["used"], bf16["datasheet_tflops"], bf16["used"]) == (
        67,
        True,
        989.5,
        False,
    )
    assert (bf16["measured_tflops"] is None) == (bf16["measured_date"] is None)
    assert [row["datasheet_tflops"] for row in peaks_by_dtype(CPU, calibrated, None, ())] == [None, None]


@pytest.mark.parametrize("damage", ["", "{", "[]", "\x00", '{"a": 1}'])
def test_a_damaged_file_is_measured_anew(cache, damage):
    cache.parent.mkdir(parents=True)
    cache.write_text(damage)
    assert kept() == kept()


@pytest.mark.parametrize(
    "change", [{"gemm_tflops": {}}, {"gemm_tflops": {"fp32": 0}}, {"copy_gb_s": "fast"}, {"unknown": 1}]
)
def test_a_damaged_entry_is_measured_anew(cache, change):
    first = kept()
    document = json.loads(cache.read_text())
    (entry,) = document.values()
    entry |= change
    cache.write_text(json.dumps(document))
    again = kept()
    assert again.gemm_tflops["fp32"] > 0 and again.samples != first.samples


def test_a_cache_that_cannot_be_written_is_a_warning(cache, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.warns(RuntimeWarning, match="not kept"):
        assert kept().gemm_tflops["fp32"] > 0
    assert file.read_text() == ""


def test_the_plans_outgrow_the_caches_and_stay_in_order():
    assert PLANS["cpu"].copy_bytes >= 256e6 and PLANS["cuda"].copy_bytes >= 2e9
    for plan in PLANS.values():
        work = [m * n * k for m, n, k in plan.shapes]
        assert work == sorted(work)


@pytest.mark.gpu
def test_a_gpu_reaches_most_of_its_datasheet_and_no_more():
    device = torch.device("cuda")
    found = calibrate(device, ["fp32", "tf32", "bf16", "fp16"])
    assert found.gemm_tflops["fp32"] < found.gemm_tflops["bf16"]
    try:
        row = datasheet(found.device_name)
    except UnknownAccelerator as error:
        pytest.skip(str(error))
    assert 0.4 * row.bf16 < found.gemm_tflops["bf16"] < 1.1 * row.bf16
    assert 0.5 * row.bandwidth_gb_s < found.copy_gb_s < row.bandwidth_gb_s
