"""A stand-in for NVIDIA's driver library: two GPUs, known by UUID alone, of which any counter may be missing.

Its functions have the names and the parameters of ``pynvml``; test_nvml.py holds them against the real module.
"""

import os
from types import SimpleNamespace
from typing import Any

NOT_SUPPORTED, NO_PERMISSION = 3, 4
MHZ = {"GPU-bbbb": 1980, "GPU-aaaa": 1200}  # the first device of CUDA is not the first of the driver
FIELDS = {185: 400_000, 186: 500_000}  # mW


class NVMLError(Exception):
    """The driver's error, with its words for the codes that the tests use."""

    def __init__(self, value: int) -> None:
        self.value = value
        super().__init__({3: "Not Supported", 4: "Insufficient Permissions", 6: "Not Found"}[value])


class Driver:
    """``lacks`` holds functions, fields and GPM metrics that the driver does not support; ``forbids`` those that need
    a permission. ``masks`` are the clock event reasons, one sample after the other; ``limits`` the nanoseconds by which
    each field of a limit grows between two readings; ``gpm`` the metrics' percentages, none before Hopper.
    """

    NVMLError = NVMLError

    def __init__(self, lacks=(), masks=(0,), pids=None, forbids=(), limits=None, gpm=None):
        self.refused = dict.fromkeys(lacks, NOT_SUPPORTED) | dict.fromkeys(forbids, NO_PERMISSION)
        self.masks, self.pids = masks, [os.getpid()] if pids is None else pids
        self.reads, self.open, self.energy_mj, self.taken = 0, 0, 1000, []
        self.grows = {74: 0, 75: 0, 76: 0, 77: 0, 79: 0} | (limits or {})
        self.totals, self.gpm, self.samples = dict.fromkeys(self.grows, 10**9), gpm, 0

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in self.refused:
            raise NVMLError(self.refused[name])
        return super().__getattribute__(name)

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in MHZ:
            raise NVMLError(6)
        return SimpleNamespace(mhz=MHZ[uuid])

    def nvmlDeviceGetFieldValues(self, handle, fieldIds):
        (field,) = fieldIds
        if field in self.totals:
            self.totals[field] += self.grows[field]
        value = SimpleNamespace(uiVal=FIELDS.get(field), ullVal=self.totals.get(field))
        kind = 1 if field in FIELDS else 3
        return [SimpleNamespace(nvmlReturn=self.refused.get(field, 0), valueType=kind, value=value)]

    def nvmlDeviceGetViolationStatus(self, device, perfPolicyType):
        self.totals[75] += 7_000_000
        return SimpleNamespace(referenceTime=0, violationTime=self.totals[75])

    def nvmlDeviceGetPowerUsage(self, handle):
        return 450_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlDeviceGetClockInfo(self, handle, type):
        return {1: handle.mhz, 2: 2619}[type]

    def nvmlDeviceGetTemperatureV(self, handle, sensor):
        return 61

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 60

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=5 << 30)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid) for pid in self.pids]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        self.reads += 1
        return self.masks[(self.reads - 1) % len(self.masks)]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return 0x40

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.energy_mj += 2500
        return self.energy_mj

    def nvmlGpmQueryDeviceSupport(self, device):
        return SimpleNamespace(isSupportedDevice=int(self.gpm is not None))

    def nvmlGpmSampleAlloc(self):
        self.samples += 1
        return SimpleNamespace(taken=None)

    def nvmlGpmSampleFree(self, gpmSample):
        self.samples -= 1

    def nvmlGpmSampleGet(self, device, gpmSample):
        self.taken.append(gpmSample)
        gpmSample.taken = len(self.taken)

    def c_nvmlGpmMetricsGet_t(self) -> Any:
        metrics = [SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0) for _ in range(50)]
        return SimpleNamespace(version=0, numMetrics=0, sample1=None, sample2=None, metrics=metrics)

    def nvmlGpmMetricsGet(self, metricsGet):
        assert metricsGet.version == 1 and metricsGet.sample1.taken < metricsGet.sample2.taken
        for metric in metricsGet.metrics[: metricsGet.numMetrics]:
            metric.nvmlReturn = self.refused.get(("gpm", metric.metricId), 0)
            metric.value = self.gpm.get(metric.metricId, 0.0)
        return metricsGet
