"""The peak that this device really reaches: its best large GEMM per dtype, and its copy bandwidth.

A datasheet's peak is a clock times a width that no kernel sustains; dividing by what a large GEMM reaches says how much
a kernel leaves behind on this device, with its clocks and power limit, today. The operands are random, because a GPU
that multiplies constants toggles fewer bits, draws less power and clocks higher than it will in training.
  cf. Horace He, thonking.ai/p/strangely-matrix-multiplications
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from mfubench.errors import BadInput, ToolBroke
from mfubench.files import kept_json, write_json

from .environment import cache_directory, device_name, device_uuid, now
from .nvml import other_processes
from .peaks import Datasheet

if TYPE_CHECKING:
    import torch

BUSY = 0.8  # of its threads' time: a calibration that had less of it on a processor measured the others' work
LONG_S = 5e-3  # a shorter call need not keep every thread at work
DTYPES = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure: GEMM shapes (M, N, K) in order of work, how long one call may take, and the copy's size.

    The copy must be larger than the last-level cache, or it measures the cache. ``middle`` is the time that counts: on
    a GPU the median of the calls, on a CPU, whose other processes can only slow a call down, the fastest.
    """

    shapes: tuple[Shape, ...]
    limit_s: float
    repeats: int
    warmup: int
    copy_bytes: int
    middle: Callable[[list[float]], float] = median

    @property
    def how(self) -> str:
        """In words, for the report; a calibration made otherwise is another one."""
        return (
            f"torch.mm on random data, best shape up to {'x'.join(map(str, self.shapes[-1]))}, "
            f"copy of {self.copy_bytes >> 20} MiB, {'fastest' if self.middle is min else 'median'} of {self.repeats} "
            f"after {self.warmup}"
        )


PLANS = {
    "cpu": Plan(tuple((n, n, n) for n in (256, 512, 1024, 2048, 4096)), 0.15, 4, 1, 256 << 20, min),
    "cuda": Plan(
        ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 16384, 8192), (16384, 16384, 16384)), 0.25, 20, 5, 2 << 30
    ),
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one device reached: dense TFLOP/s per dtype (2 per multiply-add), copy GB/s (bytes read plus written).

    ``samples`` holds every call's time in ms by what it measured. ``cpu_share`` is how much of its threads' time its
    fastest long calls had on a processor, the worst of them; None on a GPU and where no call was long.
    ``other_processes`` were on the GPU after it; None where nobody tells.
    """

    device_name: str
    gemm_tflops: dict[str, float]
    copy_gb_s: float
    samples: dict[str, list[float]]
    date: str
    torch: str
    threads: int
    how: str
    cpu_share: float | None = None
    other_processes: int | None = None

    @property
    def busy(self) -> str:
        """What says that others took a part of the machine, so that the peaks are too low; empty if nothing does."""
        if self.cpu_share is not None and self.cpu_share < BUSY:
            return f"{self.cpu_share:.0%} of its threads' time on a processor"
        return f"{self.other_processes} other processes on the GPU" if self.other_processes else ""


@dataclass(slots=True)
class _Log:
    samples: dict[str, list[float]] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)


def calibrate(device: "torch.device", dtype_names: Sequence[str], plan: Plan | None = None) -> Calibration:
    """Measure ``device`` now: one to two seconds for one dtype on a CPU, a few on a GPU.

    fp32 runs with TF32 off, tf32 with it on; the setting and the random state are left as they were.

    Raises:
        BadInput: a device or dtype that cannot be calibrated.
        ToolBroke: the device has too little free memory.
    """
    import torch

    for name in dtype_names:
        _check(device, name)
    plan = plan or PLANS[device.type]
    peaks: dict[str, float] = {}
    log = _Log()
    try:
        for name in dtype_names:
            peaks[name] = _gemm_peak(device, name, plan, log)
        copy_gb_s = _copy_rate(device, plan, log)
    except torch.OutOfMemoryError:
        raise ToolBroke(f"{device} has too little free memory to calibrate; free it, or use another device") from None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # else gigabytes of cached blocks would count as the workload's
    version, threads = str(torch.__version__), torch.get_num_threads()
    share, others = min(log.shares, default=None), other_processes(device_uuid(device))
    return Calibration(
        device_name(device), peaks, copy_gb_s, log.samples, now(), version, threads, plan.how, share, others
    )


def load_or_calibrate(device: "torch.device", dtype: str, refresh: bool = False) -> Calibration:
    """The kept calibration of this device for one dtype, measured first if there is none or ``refresh`` is set.

    It is kept per device, dtype, torch version, thread count (on a CPU) and method in ``calibration.json`` in the
    user's cache folder. A damaged file is measured anew; one that cannot be written is a warning. What was measured on
    a ``busy`` machine is not kept.

    Raises:
        BadInput, ToolBroke: as ``calibrate``.
    """
    if not refresh and (found := kept_calibration(device, dtype)):
        return found
    measured = calibrate(device, [dtype])
    if measured.busy:
        return measured
    cache, key = _cache(), _fingerprint(device, dtype)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, _entries() | {key: asdict(measured)})
    except OSError as error:
        warnings.warn(f"the calibration is not kept: cannot write {cache}: {error}", RuntimeWarning, stacklevel=2)
    return measured


_adopted: dict[tuple[str, str], Calibration] = {}


def adopt(calibration: Calibration) -> None:
    """Let ``calibration`` hold in this process for its device and dtypes, before what is kept."""
    _adopted.update({(calibration.device_name, dtype): calibration for dtype in calibration.gemm_tflops})


def kept_calibration(device: "torch.device", dtype: str) -> Calibration | None:
    """The adopted or kept calibration of this device for one dtype; None where there is none. Nothing is measured.

    Raises:
        BadInput: a device or dtype that cannot be calibrated.
    """
    _check(device, dtype)
    adopted = _adopted.get((device_name(device), dtype))
    return adopted or _parse(_entries().get(_fingerprint(device, dtype)), dtype)


def peaks_by_dtype(
    device: "torch.device", own: Calibration, sheet: Datasheet | None, used: Collection[str]
) -> list[dict[str, Any]]:
    """Measured and datasheet TFLOP/s of each dtype that ``device`` has; a peak that nobody measured yet is None.

    ``own`` is the calibration of the run's dtype, ``used`` the dtypes that its step computed in.
    """
    rows = []
    for dtype in DTYPES[device.type]:
        found = own if dtype in own.gemm_tflops else kept_calibration(device, dtype)
        rows.append(
            {
                "dtype": dtype,
                "measured_tflops": found.gemm_tflops[dtype] if found else None,
                "measured_date": found.date if found else None,
                "datasheet_tflops": sheet.tflops(dtype) if sheet else None,
                "used": dtype in used,
            }
        )
    return rows


def _check(device: "torch.device", dtype: str) -> None:
    if device.type not in DTYPES:
        raise BadInput(f"cannot calibrate a {device.type} device; allowed: {', '.join(DTYPES)}")
    if dtype not in DTYPES[device.type]:
        allowed = ", ".join(DTYPES[device.type])
        raise BadInput(f"cannot calibrate {dtype!r} on a {device.type} device; allowed: {allowed}")


def _gemm_peak(device: "torch.device", dtype: str, plan: Plan, log: _Log) -> float:
    """TFLOP/s. Each shape's rate foretells the next one's time, so that a slow device stops early."""
    from .precision import PRECISIONS, fp32_products

    best = 0.0
    with fp32_products(PRECISIONS.get(dtype, "highest")):
        for shape in plan.shapes:
            flops = 2 * shape[0] * shape[1] * shape[2]
            if best and flops / best > plan.limit_s:
                break
            seconds = _seconds(_gemm(device, dtype, shape), device, plan, log)
            log.samples[f"{dtype} {'x'.join(map(str, shape))}"] = [1e3 * s for s in seconds]
            best = max(best, flops / plan.middle(seconds))
    return best / 1e12


def _gemm(device: "torch.device", dtype: str, shape: Shape) -> Callable[[], object]:
    import torch

    kinds = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    kind, (m, n, k) = kinds[dtype], shape
    generator = torch.Generator(device).manual_seed(0)  # its own, so that the caller's random state stays as it was
    a = torch.randn(m, k, device=device, dtype=kind, generator=generator)
    b = torch.randn(k, n, device=device, dtype=kind, generator=generator)
    out = torch.empty(m, n, device=device, dtype=kind)
    return lambda: torch.mm(a, b, out=out)


def _copy_rate(device: "torch.device", plan: Plan, log: _Log) -> float:
    import torch

    generator = torch.Generator(device).manual_seed(0)
    piece = torch.randn(min(plan.copy_bytes // 4, 1 << 20), device=device, generator=generator)
    source = piece.repeat(plan.copy_bytes // 4 // piece.numel())
    target = torch.zeros_like(source)
    seconds = _seconds(lambda: target.copy_(source), device, plan, log)
    log.samples[f"copy {plan.copy_bytes} bytes"] = [1e3 * s for s in seconds]
    return 2 * plan.copy_bytes / plan.middle(seconds) / 1e9


def _seconds(call: Callable[[], object], device: "torch.device", plan: Plan, log: _Log) -> list[float]:
    import torch

    for _ in range(plan.warmup):
        call()
    if device.type == "cuda":
        return _event_seconds(call, device, plan.repeats)
    timed = []
    for _ in range(plan.repeats):
        start, start_worked = perf_counter(), process_time()
        call()
        timed.append((perf_counter() - start, process_time() - start_worked))
    fastest, worked = min(timed)
    if fastest > LONG_S:
        log.shares.append(worked / (fastest * torch.get_num_threads()))
    return [seconds for seconds, _ in timed]


def _event_seconds(call: Callable[[], object], device: "torch.device", repeats: int) -> list[float]:
    import torch

    with torch.cuda.device(device):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        events[-1].synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]


def _cache() -> Path:
    return cache_directory() / "calibration.json"


def _entries() -> dict[str, Any]:
    return kept_json(_cache()) or {}


def _fingerprint(device: "torch.device", dtype: str) -> str:
    import torch

    unit = device_uuid(device) or f"{torch.get_num_threads()} threads"
    return " | ".join((device_name(device), unit, f"torch {torch.__version__}", dtype, PLANS[device.type].how))


def _parse(entry: Any, dtype: str) -> Calibration | None:
    """The entry as a Calibration; None if it is missing or damaged."""
    try:
        found = Calibration(**entry)
        return found if found.gemm_tflops[dtype] > 0 and found.copy_gb_s > 0 else None
    except (KeyError, TypeError):
        return None
