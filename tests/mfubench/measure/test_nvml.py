"""The NVML sampler against a stand-in driver that can lack any counter, and against no driver at all."""

import inspect
import json
import multiprocessing
import os
import re
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch

from mfubench.measure import gpm, nvml
from mfubench.measure.environment import device_uuid
from mfubench.measure.gpm import METRICS, VERSION
from mfubench.measure.nvml import (
    CLOCK_EVENT_REASONS,
    LIMITS,
    NvmlSampler,
    driver_version,
    missing_counters,
    per_step,
)
from tests.mfubench.measure.stand_in_driver import Driver

COUNTERS = {
    "power_w",
    "power_average_w",
    "power_limit_w",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "temperature_c",
    "utilisation_percent",
    "memory_used_bytes",
    "other_processes",
}


def sampled(driver, uuid="GPU-aaaa", seconds=0.0):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvml, "INTERVAL_S", 0.05)
        with NvmlSampler(uuid, library=driver) as sampler:
            time.sleep(seconds)
    summary = sampler.summary()
    assert json.loads(json.dumps(summary)) == summary
    return summary


def test_every_counter_is_summarised():
    driver = Driver()
    summary = sampled(driver, seconds=0.23)
    assert summary["available"] and summary["counters"].keys() == COUNTERS
    power = summary["counters"]["power_w"]
    assert (power["min"], power["mean"], power["max"], power["unit"]) == (500, 500, 500, "W")
    assert power["source"] == "NVML_FI_DEV_POWER_INSTANT" and power["samples"] >= 2
    assert summary["counters"]["power_average_w"]["mean"] == 400
    assert summary["counters"]["power_limit_w"]["max"] == 700
    assert summary["counters"]["temperature_c"]["mean"] == 61
    assert summary["counters"]["memory_used_bytes"]["max"] == 5 << 30
    assert summary["counters"]["other_processes"]["max"] == 0
    assert driver.open == 0


@pytest.mark.parametrize(("uuid", "mhz"), [("GPU-aaaa", 1200), ("aaaa", 1200), ("bbbb", 1980)])
def test_the_device_is_found_by_uuid(uuid, mhz):
    assert sampled(Driver(), uuid)["counters"]["sm_clock_mhz"]["mean"] == mhz


def test_a_block_shorter_than_the_interval_is_sampled_once():
    assert sampled(Driver())["counters"]["power_w"]["samples"] == 1


@pytest.mark.parametrize(
    ("lacks", "counter", "value", "source"),
    [
        (186, "power_w", 450, "nvmlDeviceGetPowerUsage"),
        (185, "power_average_w", 450, "nvmlDeviceGetPowerUsage"),
        ("nvmlDeviceGetTemperatureV", "temperature_c", 60, "nvmlDeviceGetTemperature"),
    ],
)
def test_an_older_call_stands_in(lacks, counter, value, source):
    summary = sampled(Driver({lacks}))["counters"][counter]
    assert (summary["mean"], summary["source"]) == (value, source)


@pytest.mark.parametrize(
    ("lacks", "counter"),
    [
        ({186, "nvmlDeviceGetPowerUsage"}, "power_w"),
        ({"nvmlDeviceGetClockInfo"}, "sm_clock_mhz"),
        ({"nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"}, "temperature_c"),
        ({"nvmlDeviceGetUtilizationRates"}, "utilisation_percent"),
        ({"nvmlDeviceGetMemoryInfo"}, "memory_used_bytes"),
        ({"nvmlDeviceGetComputeRunningProcesses"}, "other_processes"),
    ],
)
def test_a_missing_counter_gives_its_reason_and_leaves_the_others(lacks, counter):
    counters = sampled(Driver(lacks))["counters"]
    assert counters[counter].keys() == {"unavailable"}
    assert counters[counter]["unavailable"].startswith("not available: ")
    assert counters["power_limit_w"]["mean"] == 700


def test_a_binding_without_the_function_is_a_missing_counter(monkeypatch):
    monkeypatch.delattr(Driver, "nvmlDeviceGetEnforcedPowerLimit")
    assert "nvmlDeviceGetEnforcedPowerLimit" in sampled(Driver())["counters"]["power_limit_w"]["unavailable"]


def test_neighbours_are_counted():
    assert sampled(Driver(pids=[os.getpid(), 1, 2]))["counters"]["other_processes"]["max"] == 2


@pytest.mark.parametrize(("pids", "others"), [([os.getpid(), 1, 2], 2), ([os.getpid()], 0), ([1, 2], None)])
def test_neighbours_are_counted_at_once(pids, others):
    assert nvml.other_processes("GPU-aaaa", Driver(pids=pids)) == others and nvml.other_processes(None) is None


def test_what_started_this_process_is_no_neighbour(monkeypatch):
    """A campaign has looked at the GPU itself before its worker measures there."""
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=1))
    assert sampled(Driver(pids=[os.getpid(), 1, 2]))["counters"]["other_processes"]["max"] == 1


def test_hidden_process_ids_are_not_taken_for_neighbours():
    assert "container" in sampled(Driver(pids=[1, 2]))["counters"]["other_processes"]["unavailable"]


def test_reasons_for_a_lowered_clock_are_named_with_their_time():
    summary = sampled(Driver(masks=(0x4 | 0x20, 0x4 | 0x1000)), seconds=0.3)
    seen, window_ms = summary["clock_events"]["seen"], 1e3 * summary["window_s"]
    assert seen["sw_power_cap"] == {"ms": pytest.approx(window_ms), "share": 1}
    assert seen.keys() == {"sw_power_cap", "sw_thermal_slowdown", "0x1000"}
    assert seen["sw_thermal_slowdown"]["ms"] + seen["0x1000"]["ms"] == pytest.approx(window_ms)
    assert summary["clock_events"]["samples"] > 1


def test_no_reason_is_no_time():
    assert sampled(Driver())["clock_events"]["seen"] == {}


def test_the_older_name_of_the_reasons_stands_in():
    summary = sampled(Driver({"nvmlDeviceGetCurrentClocksEventReasons"}))["clock_events"]
    assert summary["seen"].keys() == {"hw_thermal_slowdown"}


def test_limits_are_the_milliseconds_that_the_driver_counts():
    limits = sampled(Driver(limits={74: 30_000_000}), seconds=0.1)["limits"]
    assert limits.keys() == LIMITS.keys()
    assert limits["power"]["ms"] == pytest.approx(30.0) and 0.1 < limits["power"]["share"] < 0.3
    assert limits["thermal"]["ms"] == 0


def test_an_older_call_counts_a_limit_where_the_driver_has_no_field():
    limits = sampled(Driver({75}))["limits"]
    assert limits["thermal"]["ms"] == pytest.approx(7.0)
    assert limits["thermal"]["source"] == "nvmlDeviceGetViolationStatus"


def test_a_limit_that_grows_by_more_than_the_window_is_not_in_nanoseconds():
    limit = sampled(Driver(limits={74: 10**13}))["limits"]["power"]
    assert limit.keys() == {"unavailable"} and "grew by 1e+07 ms" in limit["unavailable"]


def test_a_limit_that_is_missing_says_why():
    limit = sampled(Driver({74, "nvmlDeviceGetViolationStatus"}))["limits"]["power"]
    assert limit["unavailable"] == "not available: field 74: Not Supported; nvmlDeviceGetViolationStatus: Not Supported"


HOPPER = {2: 91.0, 3: 40.0, 5: 62.5, 10: 33.0, 12: 4.0}


def test_the_gpu_s_own_counters_span_the_window():
    driver = Driver(gpm=HOPPER)
    gpm = sampled(driver)["gpm"]
    assert gpm.keys() == METRICS.keys()
    assert (gpm["tensor_active_percent"], gpm["dram_active_percent"], gpm["fp32_active_percent"]) == (62.5, 33.0, 4.0)
    assert len(driver.taken) == 2 and driver.samples == 0


def test_a_gpu_before_hopper_has_no_such_counters():
    gpm = sampled(Driver())["gpm"]
    assert set(map(str, gpm.values())) == {
        "{'unavailable': 'not available: this GPU has no such counters; Hopper and later have'}"
    }


@pytest.mark.parametrize(
    "function", ["nvmlGpmQueryDeviceSupport", "nvmlGpmSampleGet", "nvmlGpmMetricsGet", "nvmlGpmSampleAlloc"]
)
def test_counters_that_need_a_permission_say_so_and_leak_nothing(function):
    driver = Driver(forbids={function}, gpm=HOPPER)
    summary = sampled(driver)
    assert summary["gpm"]["tensor_active_percent"] == {"unavailable": "not available: Insufficient Permissions"}
    assert driver.samples == 0 and summary["counters"]["power_limit_w"]["mean"] == 700


def test_one_metric_may_be_missing_among_them():
    gpm = sampled(Driver({("gpm", 10)}, gpm=HOPPER))["gpm"]
    assert gpm["dram_active_percent"] == {"unavailable": "not available: Not Supported"}
    assert gpm["tensor_active_percent"] == 62.5


def test_a_library_without_these_functions_is_a_missing_counter(monkeypatch):
    monkeypatch.delattr(Driver, "nvmlGpmQueryDeviceSupport")
    assert "nvmlGpmQueryDeviceSupport" in sampled(Driver(gpm=HOPPER))["gpm"]["sm_active_percent"]["unavailable"]


def test_missing_reasons_are_said():
    both = {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"}
    assert "Not Supported" in sampled(Driver(both))["clock_events"]["unavailable"]


def test_energy_of_a_short_window_is_not_given():
    energy = sampled(Driver())["energy"]
    assert energy["value"] is None and "5 s are needed" in energy["unavailable"]


def test_energy_is_what_the_counter_grew_by_with_how_sure_that_is(monkeypatch):
    monkeypatch.setattr(nvml, "MIN_ENERGY_WINDOW_S", 0.0)
    energy = sampled(Driver(), seconds=0.1)["energy"]
    assert energy["value"] == pytest.approx(2.5) and energy["source"] == "nvmlDeviceGetTotalEnergyConsumption"
    assert energy["uncertain_percent"] == pytest.approx(100 * 0.2 / energy["window_s"])


def test_without_the_counter_energy_is_the_mean_power(monkeypatch):
    monkeypatch.setattr(nvml, "MIN_ENERGY_WINDOW_S", 0.0)
    energy = sampled(Driver({"nvmlDeviceGetTotalEnergyConsumption"}), seconds=0.1)["energy"]
    assert energy["value"] == pytest.approx(500 * energy["window_s"]) and "power samples" in energy["source"]


def test_energy_that_nothing_tells_is_missing():
    energy = sampled(Driver({"nvmlDeviceGetTotalEnergyConsumption", 186, "nvmlDeviceGetPowerUsage"}))["energy"]
    assert energy["value"] is None and "Not Supported" in energy["unavailable"]


def test_how_long_the_window_must_go_on():
    with NvmlSampler("GPU-aaaa", library=Driver()) as sampler:
        assert 4.0 < sampler.missing_s() <= 5.0
    nothing = Driver({"nvmlDeviceGetTotalEnergyConsumption", 186, "nvmlDeviceGetPowerUsage"})
    with NvmlSampler("GPU-aaaa", library=nothing) as sampler:
        assert sampler.missing_s() == 0.0
    with NvmlSampler(None) as sampler:
        assert sampler.missing_s() == 0.0


def test_energy_of_a_step_and_of_a_sample(monkeypatch):
    monkeypatch.setattr(nvml, "MIN_ENERGY_WINDOW_S", 0.0)
    summary = per_step(sampled(Driver()), requests=50, steps=5)
    assert summary["window_steps"] == 5
    assert summary["energy"]["joules_per_step"] == pytest.approx(0.5)
    assert summary["energy"]["joules_per_sample"] == pytest.approx(0.05)
    short = {"available": True, "energy": {"value": None, "unavailable": "short"}}
    assert per_step(short, 50, 5) == short | {"window_steps": 5}
    assert per_step({"available": False, "reason": "none"}, 50, 5) == {"available": False, "reason": "none"}


def test_each_missing_counter_has_a_line_and_those_of_one_reason_share_it():
    lines = missing_counters(sampled(Driver({"nvmlDeviceGetClockInfo", 74, "nvmlDeviceGetViolationStatus"})))
    assert "sm_clock_mhz, memory_clock_mhz (NVML): nvmlDeviceGetClockInfo: Not Supported" in lines
    assert any(line.startswith("time at the power limit (NVML): field 74: Not Supported") for line in lines)
    assert any(line.startswith("energy (NVML): not meaningful") for line in lines)
    (gpm,) = (line for line in lines if "tensor_active_percent" in line)
    assert gpm.endswith("(NVML): this GPU has no such counters; Hopper and later have")
    assert len(lines) == 4


def test_where_nothing_is_sampled_one_line_says_so():
    assert missing_counters(sampled(Driver(), None)) == [
        "power, clocks, temperature (NVML): no NVIDIA GPU is being measured"
    ]


@pytest.mark.parametrize(
    ("driver", "uuid", "reason"),
    [
        (Driver(), None, "no NVIDIA GPU"),
        (Driver({"nvmlInit"}), "GPU-aaaa", "no NVIDIA driver"),
        (Driver(), "GPU-cccc", "no GPU-cccc"),
    ],
)
def test_what_cannot_be_sampled_says_why(driver, uuid, reason):
    summary = sampled(driver, uuid)
    assert summary["available"] is False and reason in summary["reason"]
    assert driver.open == 0


def test_a_sampler_that_never_ran_says_so():
    assert NvmlSampler("GPU-aaaa", library=Driver()).summary()["reason"] == "the sampler has not run"


def test_no_library_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in sampled(None)["reason"]
    assert driver_version() is None


def test_a_module_that_is_not_nvidias_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", ModuleType("pynvml"))
    assert "not NVIDIA's" in sampled(None)["reason"]


def test_nvidias_library_is_accepted_and_knows_no_such_gpu():
    # Without a driver the reason is the driver, with one it is the UUID.
    assert "not NVIDIA's" not in sampled(None, "GPU-no-such-device")["reason"]


def test_an_error_in_the_block_closes_the_driver_and_goes_on():
    driver = Driver()
    with pytest.raises(KeyError), NvmlSampler("GPU-aaaa", library=driver):
        raise KeyError
    assert driver.open == 0


def test_the_driver_version():
    driver = Driver()
    assert driver_version(driver) == "580.1" and driver.open == 0
    assert driver_version(Driver({"nvmlInit"})) is None
    assert driver_version(Driver({"nvmlSystemGetDriverVersion"})) is None


def test_every_name_that_is_asked_of_the_driver_exists():
    """In NVIDIA's own module; a call by a wrong name would for ever be a counter that is not available."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for module in (nvml, gpm):
        names = set(re.findall(r"\b(?:c_)?nvml[A-Z]\w+|\bNVML_(?:FI|GPM)_\w+\b", inspect.getsource(module)))
        names -= {"nvmlValueType_t", "nvmlPerfPolicyType_t", "nvmlGpmMetricId_t", "nvmlReturn"}  # of the C header
        assert len(names) > 5 and not {name for name in names if not name.endswith("_") and not hasattr(pynvml, name)}


def test_the_stand_in_has_the_parameters_of_the_real_functions():
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    functions = [name for name in vars(Driver) if name.startswith("nvml")]
    assert len(functions) > 20
    for name in functions:
        _, *ours = inspect.signature(getattr(Driver, name)).parameters
        real = inspect.signature(getattr(pynvml, name)).parameters
        assert ours == [key for key, parameter in real.items() if parameter.default is parameter.empty], name


def test_the_numbers_are_those_of_the_real_module():
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    named = {"power": "POWER", "thermal": "THERMAL", "sync_boost": "SYNC_BOOST", "board": "BOARD_LIMIT"}
    for name, (field, policy) in LIMITS.items():
        policy_name = named.get(name, "RELIABILITY")
        assert field == getattr(pynvml, f"NVML_FI_DEV_PERF_POLICY_{policy_name}")
        assert policy == getattr(pynvml, f"NVML_PERF_POLICY_{policy_name}")
    metrics = ("SM_UTIL", "SM_OCCUPANCY", "ANY_TENSOR_UTIL", "DRAM_BW_UTIL", "FP32_UTIL")
    assert list(METRICS.values()) == [getattr(pynvml, f"NVML_GPM_METRIC_{name}") for name in metrics]
    assert VERSION == pynvml.NVML_GPM_METRICS_GET_VERSION and len(METRICS) <= pynvml.NVML_GPM_METRIC_MAX
    assert (pynvml.NVML_FI_DEV_POWER_AVERAGE, pynvml.NVML_FI_DEV_POWER_INSTANT) == (185, 186)
    for mask, name in CLOCK_EVENT_REASONS.items():
        words = name.title().replace("_", "")
        known = [f"nvmlClocks{kind}Reason{words}" for kind in ("Event", "Throttle")]
        assert mask in {getattr(pynvml, key) for key in known if hasattr(pynvml, key)}, name


@pytest.mark.gpu
def test_a_real_gpu_is_sampled():
    device = torch.device("cuda")
    x = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    with NvmlSampler(device_uuid(device)) as sampler:
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            x @ x
            torch.cuda.synchronize()
    summary = sampler.summary()
    assert summary["available"] and summary["counters"]["sm_clock_mhz"]["max"] > 500
    if torch.cuda.get_device_capability() >= (9, 0) and isinstance(summary["gpm"]["tensor_active_percent"], float):
        assert summary["gpm"]["tensor_active_percent"] > 50
    assert json.loads(json.dumps(summary)) == summary
