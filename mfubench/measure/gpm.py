"""What the GPU's own performance monitor counted over a window: how busy its pipes and its memory were.

Hopper and later GPUs keep these counters for anyone to read, with no profiler attached. Two snapshots bracket a window
and the driver turns them into shares of its time: the tensor pipe's is an independent witness of the FLOPs that a step
is said to have done.
  cf. NVIDIA, NVML API reference guide, GPM functions, docs.nvidia.com/deploy/nvml-api
"""

from contextlib import suppress
from typing import Any

METRICS = {  # name -> nvmlGpmMetricId_t; all are percentages of the window
    "sm_active_percent": 2,  # NVML_GPM_METRIC_SM_UTIL
    "sm_occupancy_percent": 3,  # NVML_GPM_METRIC_SM_OCCUPANCY
    "tensor_active_percent": 5,  # NVML_GPM_METRIC_ANY_TENSOR_UTIL
    "dram_active_percent": 10,  # NVML_GPM_METRIC_DRAM_BW_UTIL
    "fp32_active_percent": 12,  # NVML_GPM_METRIC_FP32_UTIL
}
VERSION = 1  # NVML_GPM_METRICS_GET_VERSION


class GpmWindow:
    """Two snapshots of one GPU's counters: ``begin`` and ``end`` take them, ``summary`` says what lay between."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle
        self._samples: list[Any] = []
        self._values: dict[str, Any] = {}
        self._reason = "not available: the window did not end"

    def begin(self) -> None:
        """Take the first snapshot, if this GPU has any."""
        try:
            if not self._library.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice:
                self._reason = "not available: this GPU has no such counters; Hopper and later have"
                return
            self._snapshot()
        except (self._library.NVMLError, AttributeError) as error:
            self._fail(error)

    def end(self) -> None:
        """Take the second snapshot and read the metrics."""
        if not self._samples:
            return
        try:
            self._snapshot()
            self._read()
        except (self._library.NVMLError, AttributeError) as error:
            self._fail(error)
        self._free()

    def summary(self) -> dict[str, Any]:
        """Per name in ``METRICS`` a percentage, or ``{"unavailable": reason}``."""
        return self._values or {name: {"unavailable": self._reason} for name in METRICS}

    def _snapshot(self) -> None:
        self._samples.append(self._library.nvmlGpmSampleAlloc())
        self._library.nvmlGpmSampleGet(self._handle, self._samples[-1])

    def _read(self) -> None:
        request = self._library.c_nvmlGpmMetricsGet_t()
        request.version, request.numMetrics = VERSION, len(METRICS)
        request.sample1, request.sample2 = self._samples
        for place, number in enumerate(METRICS.values()):
            request.metrics[place].metricId = number
        self._library.nvmlGpmMetricsGet(request)
        for place, name in enumerate(METRICS):
            metric = request.metrics[place]
            failed = self._library.NVMLError(metric.nvmlReturn) if metric.nvmlReturn else None
            self._values[name] = {"unavailable": f"not available: {failed}"} if failed else float(metric.value)

    def _fail(self, error: Exception) -> None:
        self._reason = f"not available: {error}"
        self._free()

    def _free(self) -> None:
        for sample in self._samples:
            with suppress(self._library.NVMLError):
                self._library.nvmlGpmSampleFree(sample)
        self._samples = []
