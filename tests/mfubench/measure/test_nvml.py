"""The NVML sampler against a stand-in driver that can lack any counter, and against no driver at all."""

import json
import os
import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch

from mfubench.errors import BadInput
from mfubench.measure import nvml
from mfubench.measure.environment import device_uuid
from mfubench.measure.nvml import NvmlSampler, driver_version

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


class NVMLError(Exception):
    pass


class Driver:
    """Two GPUs, known by UUID alone. ``lacks`` holds functions and fields that the driver does not support."""

    NVMLError = NVMLError

    def __init__(self, lacks=(), masks=(0,), pids=None):
        self.lacks, self.masks, self.pids = set(lacks), masks, [os.getpid()] if pids is None else pids
        self.reads, self.open, self.energy_mj = 0, 0, 1000

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in self.lacks:
            raise NVMLError("Not Supported")
        return super().__getattribute__(name)

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        gpus = {"GPU-bbbb": SimpleNamespace(mhz=1980), "GPU-aaaa": SimpleNamespace(mhz=1200)}
        if uuid not in gpus:
            raise NVMLError("Not Found")
        return gpus[uuid]

    def nvmlDeviceGetFieldValues(self, gpu, fields):
        (field,) = fields
        value = SimpleNamespace(uiVal={185: 400_000, 186: 500_000}[field])
        return [SimpleNamespace(nvmlReturn=3 if field in self.lacks else 0, valueType=1, value=value)]

    def nvmlDeviceGetPowerUsage(self, gpu):
        return 450_000

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu):
        return 700_000

    def nvmlDeviceGetClockInfo(self, gpu, clock):
        return {1: gpu.mhz, 2: 2619}[clock]

    def nvmlDeviceGetTemperatureV(self, gpu, sensor):
        return 61

    def nvmlDeviceGetTemperature(self, gpu, sensor):
        return 60

    def nvmlDeviceGetUtilizationRates(self, gpu):
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return SimpleNamespace(used=5 << 30)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        return [SimpleNamespace(pid=pid) for pid in self.pids]

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu):
        self.reads += 1
        return self.masks[(self.reads - 1) % len(self.masks)]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu):
        return 0x40

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        self.energy_mj += 2500
        return self.energy_mj


def sampled(driver, uuid="GPU-aaaa", seconds=0.0):
    with NvmlSampler(uuid, interval_s=0.05, library=driver) as sampler:
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


def test_hidden_process_ids_are_not_taken_for_neighbours():
    assert "container" in sampled(Driver(pids=[1, 2]))["counters"]["other_processes"]["unavailable"]


def test_reasons_for_a_lowered_clock_are_named_with_their_share():
    summary = sampled(Driver(masks=(0x4 | 0x20, 0x4 | 0x1000)), seconds=0.3)["clock_events"]
    shares = summary["shares"]
    assert shares["sw_power_cap"] == 1
    assert shares.keys() == {"sw_power_cap", "sw_thermal_slowdown", "0x1000"}
    assert shares["sw_thermal_slowdown"] + shares["0x1000"] == pytest.approx(1)
    assert summary["samples"] > 1


def test_no_reason_is_no_share():
    assert sampled(Driver())["clock_events"]["shares"] == {}


def test_the_older_name_of_the_reasons_stands_in():
    summary = sampled(Driver({"nvmlDeviceGetCurrentClocksEventReasons"}))["clock_events"]
    assert summary["shares"] == {"hw_thermal_slowdown": 1}


def test_missing_reasons_are_said():
    both = {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"}
    assert "Not Supported" in sampled(Driver(both))["clock_events"]["unavailable"]


def test_energy_of_a_short_window_is_not_given():
    energy = sampled(Driver())["energy"]
    assert energy["value"] is None and "not meaningful" in energy["unavailable"]


def test_energy_is_the_difference_over_the_window(monkeypatch):
    monkeypatch.setattr(nvml, "MIN_ENERGY_WINDOW_S", 0.0)
    assert sampled(Driver())["energy"]["value"] == pytest.approx(2.5)


def test_missing_energy_is_said():
    energy = sampled(Driver({"nvmlDeviceGetTotalEnergyConsumption"}))["energy"]
    assert energy["value"] is None and "Not Supported" in energy["unavailable"]


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


def test_too_fast_an_interval_is_refused():
    with pytest.raises(BadInput, match=r"0\.01"):
        NvmlSampler(None, interval_s=0.01)


def test_the_driver_version():
    driver = Driver()
    assert driver_version(driver) == "580.1" and driver.open == 0
    assert driver_version(Driver({"nvmlInit"})) is None
    assert driver_version(Driver({"nvmlSystemGetDriverVersion"})) is None


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
    assert json.loads(json.dumps(summary)) == summary
