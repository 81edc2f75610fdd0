"""What the driver saw while the timing pass ran: power, energy, clocks, temperature, throttling, neighbours.

A thread reads the counters at most 20 times a second, so that it does not contend for the interpreter with a
launch-bound step. It only ever reads: clocks, limits and persistence belong to whoever owns the machine. A counter that
the driver does not have is named in the summary with its reason; the others go on.
  cf. NVIDIA, NVML API reference guide, docs.nvidia.com/deploy/nvml-api
"""

import importlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from .gpm import GpmWindow

INTERVAL_S = 0.1  # between samples; a shorter one could disturb the timing
# The energy register moves every 20 to 100 ms, so that each end of a window is off by as much, and the power sensor
# covers a quarter of an A100's or H100's run time (arXiv 2312.02741): the energy of a short window is mostly noise.
MIN_ENERGY_WINDOW_S = 5.0
ENERGY_STEP_S = 0.1
MAX_LAG_MS = 500.0  # by which the driver's clock of a limit may run behind

CLOCK_EVENT_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
# Counters of the nanoseconds for which a limit held the clock down: field (NVML_FI_DEV_PERF_POLICY_*) and, where the
# driver has no such field, nvmlPerfPolicyType_t.
LIMITS = {"power": (74, 0), "thermal": (75, 1), "sync_boost": (76, 2), "board": (77, 3), "reliability": (79, 5)}
_SM_CLOCK, _MEMORY_CLOCK, _GPU_SENSOR = 1, 2, 0
_VALUE_FIELDS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t


class _Unreadable(Exception):
    """The driver answered, but its answer means nothing here."""


class _Unavailable(Exception):
    """There is no library, no driver or no such GPU: nothing can be sampled."""


@dataclass(frozen=True, slots=True)
class _Source:
    """One way to read a counter: ``read(library, handle)``, in the counter's unit."""

    name: str
    read: Callable[[Any, Any], float]


def _call(function: str, *args: int, scale: float = 1, part: str | None = None) -> _Source:
    def read(library: Any, handle: Any) -> float:
        value = getattr(library, function)(handle, *args)
        return float(getattr(value, part) if part else value) * scale

    return _Source(function, read)


def _field_value(name: str, number: int, scale: float) -> _Source:
    def read(library: Any, handle: Any) -> float:
        answer = library.nvmlDeviceGetFieldValues(handle, [number])[0]
        if answer.nvmlReturn:
            raise library.NVMLError(answer.nvmlReturn)
        return float(getattr(answer.value, _VALUE_FIELDS[answer.valueType])) * scale

    return _Source(name, read)


def _other_processes(library: Any, handle: Any) -> float:
    pids = {process.pid for process in library.nvmlDeviceGetComputeRunningProcesses(handle)}
    if os.getpid() not in pids:
        raise _Unreadable("this process is not in the driver's list, as in a container, so others cannot be told apart")
    parent = multiprocessing.parent_process()  # a campaign's, which waits beside its worker
    return len(pids - {os.getpid(), parent.pid if parent else None})


@dataclass(slots=True)
class _Series:
    """A counter's samples. The first source that answers is kept, so that one series never mixes two."""

    unit: str
    sources: tuple[_Source, ...]
    values: list[float] = field(default_factory=list)
    reason: str = "not available: no sample was taken"

    def sample(self, library: Any, handle: Any) -> None:
        errors = []
        for source in self.sources:
            try:
                value = source.read(library, handle)
            except (library.NVMLError, AttributeError, _Unreadable) as error:
                errors.append(f"{source.name}: {error}")
                continue
            self.values.append(value)
            self.sources = (source,)
            return
        self.reason = "not available: " + "; ".join(errors)

    def grown(self) -> float | None:
        """What a counter that only grows grew by between its two samples."""
        return self.values[1] - self.values[0] if len(self.values) == 2 else None

    def summary(self) -> dict[str, Any]:
        if not self.values:
            return {"unavailable": self.reason}
        mean = sum(self.values) / len(self.values)
        spread = {"min": min(self.values), "mean": mean, "max": max(self.values)}
        return spread | {"unit": self.unit, "samples": len(self.values), "source": self.sources[0].name}


def _new_counters() -> dict[str, _Series]:
    # A mean over one second since Ampere, instantaneous on GA100 and older: hence the source beside each value.
    power = _call("nvmlDeviceGetPowerUsage", scale=1e-3)
    new_temperature = _call("nvmlDeviceGetTemperatureV", _GPU_SENSOR)
    old_temperature = _call("nvmlDeviceGetTemperature", _GPU_SENSOR)
    return {
        "power_w": _Series("W", (_field_value("NVML_FI_DEV_POWER_INSTANT", 186, 1e-3), power)),
        "power_average_w": _Series("W", (_field_value("NVML_FI_DEV_POWER_AVERAGE", 185, 1e-3), power)),
        "power_limit_w": _Series("W", (_call("nvmlDeviceGetEnforcedPowerLimit", scale=1e-3),)),
        "sm_clock_mhz": _Series("MHz", (_call("nvmlDeviceGetClockInfo", _SM_CLOCK),)),
        "memory_clock_mhz": _Series("MHz", (_call("nvmlDeviceGetClockInfo", _MEMORY_CLOCK),)),
        "temperature_c": _Series("degrees C", (new_temperature, old_temperature)),
        # The share of time with at least one kernel running; it says nothing of efficiency.
        "utilisation_percent": _Series("%", (_call("nvmlDeviceGetUtilizationRates", part="gpu"),)),
        "memory_used_bytes": _Series("bytes", (_call("nvmlDeviceGetMemoryInfo", part="used"),)),
        "other_processes": _Series("processes", (_Source("nvmlDeviceGetComputeRunningProcesses", _other_processes),)),
    }


def _new_limits() -> dict[str, _Series]:
    def violation(policy: int) -> _Source:
        return _call("nvmlDeviceGetViolationStatus", policy, scale=1e-6, part="violationTime")

    return {
        name: _Series("ms", (_field_value(f"field {number}", number, 1e-6), violation(policy)))
        for name, (number, policy) in LIMITS.items()
    }


class NvmlSampler:
    """Samples one GPU's counters from a thread while the ``with`` block runs; afterwards, ``summary()``.

    ``device_uuid`` is the GPU's UUID, with or without "GPU-"; the driver's index would be wrong under
    CUDA_VISIBLE_DEVICES. None means that no GPU is measured. ``library`` stands in for NVIDIA's ``pynvml``. Nothing
    that the driver lacks is an error here.
    """

    def __init__(self, device_uuid: str | None, library: Any = None) -> None:
        self._uuid = device_uuid
        self._library = library
        self._handle: Any = None
        self._reason: str | None = "the sampler has not run"
        self._window_s = 0.0
        self._counters = _new_counters()
        new_events = _call("nvmlDeviceGetCurrentClocksEventReasons")
        self._clock_events = _Series("bitmask", (new_events, _call("nvmlDeviceGetCurrentClocksThrottleReasons")))
        self._energy = _Series("J", (_call("nvmlDeviceGetTotalEnergyConsumption", scale=1e-3),))
        self._limits = _new_limits()
        self._gpm: GpmWindow | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml-sampler", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._library, self._handle = _open(self._library, self._uuid)
        except _Unavailable as error:
            self._reason = str(error)
            return self
        self._reason = None
        self._gpm = GpmWindow(self._library, self._handle)
        self._gpm.begin()
        self._sample_totals()
        self._start_s = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reason is not None:
            return
        self._stop.set()
        self._thread.join()
        self._window_s = time.perf_counter() - self._start_s
        self._sample_totals()
        if self._gpm is not None:
            self._gpm.end()
        if not self._clock_events.values:  # a block shorter than the interval
            self._sample()
        with suppress(self._library.NVMLError):
            self._library.nvmlShutdown()

    def missing_s(self) -> float:
        """Inside the block: the seconds that it must go on for its energy to mean something; 0 where none is known."""
        if not self._energy.values and not self._counters["power_w"].values:
            return 0.0
        return max(0.0, MIN_ENERGY_WINDOW_S - (time.perf_counter() - self._start_s))

    def summary(self) -> dict[str, Any]:
        """What was seen, ready for JSON.

        ``{"available": False, "reason"}``, or ``window_s``, per name in ``counters`` ``{min, mean, max, unit, samples,
        source}`` or ``{"unavailable": reason}``, ``energy`` in joules over the window, ``clock_events``: for each
        reason for a lowered clock that was ``seen`` its ``share`` of the samples and its ``ms``, ``limits``: the same
        as the driver itself counted it, and ``gpm``: percentages of the window.
        """
        if self._reason is not None:
            return {"available": False, "reason": self._reason}
        return {
            "available": True,
            "window_s": self._window_s,
            "interval_s": INTERVAL_S,
            "counters": {name: series.summary() for name, series in self._counters.items()},
            "energy": self._energy_summary(),
            "clock_events": self._clock_events_summary(),
            "limits": {name: self._limit_summary(series) for name, series in self._limits.items()},
            "gpm": self._gpm.summary() if self._gpm is not None else {},
        }

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        for series in (*self._counters.values(), self._clock_events):
            series.sample(self._library, self._handle)

    def _sample_totals(self) -> None:
        for series in (self._energy, *self._limits.values()):
            series.sample(self._library, self._handle)

    def _energy_summary(self) -> dict[str, Any]:
        """From the driver's energy counter; where it has none, from the mean of the power samples."""
        found: dict[str, Any] = {"value": self._energy.grown(), "unit": "J", "window_s": self._window_s}
        power = self._counters["power_w"].values
        if found["value"] is not None:
            found["source"] = self._energy.sources[0].name
        elif power:
            found |= {
                "value": sum(power) / len(power) * self._window_s,
                "source": f"mean of {len(power)} power samples",
            }
        else:
            return found | {"unavailable": self._energy.reason}
        if self._window_s < MIN_ENERGY_WINDOW_S:
            short = f"the window was {self._window_s:.2g} s and {MIN_ENERGY_WINDOW_S:g} s are needed"
            return found | {"value": None, "unavailable": f"not meaningful: {short}"}
        return found | {"uncertain_percent": 100 * 2 * ENERGY_STEP_S / self._window_s}

    def _clock_events_summary(self) -> dict[str, Any]:
        masks = [int(value) for value in self._clock_events.values]
        if not masks:
            return {"unavailable": self._clock_events.reason}
        bits = [1 << bit for bit in range(max(masks).bit_length())]
        shares = {CLOCK_EVENT_REASONS.get(b, hex(b)): sum(bool(m & b) for m in masks) / len(masks) for b in bits}
        seen = {name: self._held(1e3 * share * self._window_s) for name, share in shares.items() if share}
        return {"seen": seen, "samples": len(masks), "source": self._clock_events.sources[0].name}

    def _held(self, ms: float) -> dict[str, float]:
        return {"ms": ms, "share": ms / (1e3 * self._window_s)}

    def _limit_summary(self, series: _Series) -> dict[str, Any]:
        grown = series.grown()
        if grown is None:
            return {"unavailable": series.reason}
        if not 0 <= grown <= 1e3 * self._window_s + MAX_LAG_MS:
            return {"unavailable": f"not available: {series.sources[0].name} grew by {grown:.4g} ms in the window"}
        return self._held(grown) | {"source": series.sources[0].name}


def per_step(summary: dict[str, Any], requests: int, steps: int) -> dict[str, Any]:
    """A ``summary()`` whose window held ``steps`` steps of ``requests`` samples in all, with the energy of each."""
    if not summary["available"]:
        return summary
    joules = summary["energy"]["value"]
    each = {} if joules is None else {"joules_per_step": joules / steps, "joules_per_sample": joules / requests}
    return summary | {"window_steps": steps, "energy": summary["energy"] | each}


def missing_counters(summary: dict[str, Any]) -> list[str]:
    """A line for each counter that a ``summary()`` lacks, with the reason; one line for those that share it."""
    if not summary["available"]:
        return [f"power, clocks, temperature (NVML): {summary['reason']}"]
    totals = {"energy": summary["energy"], "clock_events": summary["clock_events"]}
    limits = {f"time at the {name} limit": found for name, found in summary["limits"].items()}
    missing: dict[str, list[str]] = {}
    for name, found in (summary["counters"] | totals | limits | summary["gpm"]).items():
        if isinstance(found, dict) and "unavailable" in found:
            missing.setdefault(found["unavailable"].removeprefix("not available: "), []).append(name)
    return [f"{', '.join(names)} (NVML): {reason}" for reason, names in missing.items()]


def other_processes(device_uuid: str | None, library: Any = None) -> int | None:
    """How many other processes the driver has on the GPU; None where it does not tell."""
    try:
        library, handle = _open(library, device_uuid)
    except _Unavailable:
        return None
    try:
        return int(_other_processes(library, handle))
    except (_Unreadable, library.NVMLError):
        return None
    finally:
        with suppress(library.NVMLError):
            library.nvmlShutdown()


def driver_version(library: Any = None) -> str | None:
    """The NVIDIA driver's version; None where there is no driver or no nvidia-ml-py."""
    try:
        library = _initialised(library)
    except _Unavailable:
        return None
    try:
        return str(library.nvmlSystemGetDriverVersion())
    except library.NVMLError:
        return None
    finally:
        with suppress(library.NVMLError):
            library.nvmlShutdown()


def _open(library: Any, device_uuid: str | None) -> tuple[Any, Any]:
    if device_uuid is None:
        raise _Unavailable("no NVIDIA GPU is being measured")
    library = _initialised(library)
    uuid = device_uuid if device_uuid.startswith(("GPU-", "MIG-")) else f"GPU-{device_uuid}"
    try:
        return library, library.nvmlDeviceGetHandleByUUID(uuid)
    except library.NVMLError as error:
        with suppress(library.NVMLError):
            library.nvmlShutdown()
        raise _Unavailable(f"the driver has no {uuid}: {error}") from None


def _initialised(library: Any) -> Any:
    if library is None:
        library = _import_library()
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise _Unavailable(f"no NVIDIA driver: {error}") from None
    return library


def _import_library() -> Any:
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        raise _Unavailable("nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
    # An unrelated distribution, also called pynvml, installs a module of the same name without this function.
    if not hasattr(library, "_nvmlGetFunctionPointer"):
        raise _Unavailable(
            "the module pynvml is not NVIDIA's: pip uninstall pynvml; pip install --force-reinstall nvidia-ml-py"
        )
    return library
