"""Profile a workload: run the passes, attribute, and put everything into one Run."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mfu_kernels.errors import InvalidArgument

from .attribute.crosscheck import cross_check
from .attribute.join import Attribution, attribute
from .attribute.ledger import hotspots, kernel_rows, ledger_lines, module_rows, slice_step
from .attribute.roofline import DTYPE_NAMES, Ceilings
from .attribute.steadiness import unsteady
from .errors import BadInput, MfubenchError, OutOfMemory, ToolBroke
from .measure.calibrate import DTYPES, Calibration, load_or_calibrate, peaks_by_dtype
from .measure.count import Count, count_step
from .measure.environment import device_uuid, environment
from .measure.memory import peak_of_step, ran_out_of_memory
from .measure.nvml import NvmlSampler, missing_counters, per_step
from .measure.peaks import Datasheet, datasheet
from .measure.scopes import ScopeTracker
from .measure.stats import median_ci
from .measure.timing import keep_going, time_steps
from .measure.trace import trace_steps
from .run import Run
from .workload.prepare import prepare
from .workload.spec import TRACED_STEPS, WARMUP_STEPS, Workload, WorkloadSpec
from .workload.step import run_step

Progress = Callable[[str, float], None]
"""Told the stage in words and how much of the whole is done, 0 to 1."""
MAX_DISTORTION, MIN_COVERAGE = 1.2, 0.95


def _silent(_stage: str, _done: float) -> None:
    pass


@dataclass(slots=True)
class Passes:
    """What the four passes brought, and the peaks that bound it."""

    timings_ms: list[float]
    counts: list[Count]
    attribution: Attribution
    traced_steps: int
    nvml: dict[str, Any]
    sheet_tflops: float | None
    sheet: Datasheet | None
    calibration: Calibration
    ceilings: Ceilings


def profile(spec: WorkloadSpec, *, progress: Progress = _silent, trace_path: Path | None = None) -> Run:
    """Build ``spec``'s workload, run the timing, count, trace and memory passes, and say where the time went.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: the workload cannot be built, or its step fails.
        ToolBroke: two independent counts of its FLOPs disagree.
    """
    progress("building the model and its batches, and a first step", 0.0)
    return profile_workload(prepare(spec), progress=progress, trace_path=trace_path)


def profile_workload(workload: Workload, *, progress: Progress = _silent, trace_path: Path | None = None) -> Run:
    """The same for a workload that is already there."""
    device = workload.device
    sheet, sheet_tflops = _datasheet(workload)
    _first_step(workload)
    progress("calibrating the device's peaks", 0.1)
    calibration = load_or_calibrate(device, workload.dtype)
    timings, nvml = _timing_pass(workload, progress)
    progress("counting FLOPs and bytes", 0.6)
    counts = [_count(workload, index) for index in range(len(workload.inputs))]
    progress("tracing", 0.75)

    def traced(tracker: ScopeTracker, index: int) -> None:
        run_step(workload, index, phase=tracker.phase)

    trace = trace_steps(workload.module, traced, device=device, num_steps=TRACED_STEPS, keep=trace_path)
    attribution = attribute(trace, device.type)
    progress("measuring memory", 0.9)
    memory = peak_of_step(
        workload.module, workload.optimizers, lambda tracker: run_step(workload, 0, phase=tracker.phase)
    )
    ceilings = _ceilings(workload, counts, calibration, sheet_tflops)
    passes = Passes(timings, counts, attribution, TRACED_STEPS, nvml, sheet_tflops, sheet, calibration, ceilings)
    device_peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return _assemble(workload, passes, memory, device_peak, str(trace_path) if trace_path else None)


def _datasheet(workload: Workload) -> tuple[Datasheet | None, float | None]:
    """The datasheet and its dense peak of the run's dtype; none on a CPU, or where the measured peak was asked for."""
    wanted = workload.spec.peak
    if workload.device.type == "cpu":
        if wanted == "datasheet":
            raise BadInput("--peak datasheet: no datasheet peak is kept for a CPU; use --peak measured")
        return None, None
    if wanted == "measured":
        return None, None
    sheet = datasheet(torch.cuda.get_device_name(workload.device))
    tflops = sheet.tflops(workload.dtype)
    if tflops is None:
        raise BadInput(f"{sheet.product} has no {workload.dtype} peak; use another --dtype, or --peak measured")
    return sheet, tflops


def _first_step(workload: Workload) -> None:
    """One step whose failure is the input's: a model whose forward, loss or backward does not run."""
    try:
        run_step(workload, 0)
        if workload.device.type == "cuda":
            torch.cuda.synchronize(workload.device)
            torch.cuda.reset_peak_memory_stats(workload.device)
    except (MfubenchError, InvalidArgument):
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            message = f"the step ran out of memory: {error}; use a smaller --batch-size or --size"
            raise OutOfMemory(message) from error
        if workload.needed is not None and not isinstance(error, RuntimeError):
            raise  # a model of the zoo with inputs of ours: a defect, not bad input
        raise BadInput(f"the model's step failed: {type(error).__name__}: {error}") from error


def _timing_pass(workload: Workload, progress: Progress) -> tuple[list[float], dict[str, Any]]:
    spec, module = workload.spec, timed_module(workload)
    if spec.compile != "none":
        progress("compiling", 0.15)
        for index in range(len(workload.inputs)):
            run_step(workload, index, module=module)

    def step(index: int) -> None:
        run_step(workload, index, module=module)

    sampler = NvmlSampler(device_uuid(workload.device))
    with ExitStack() as window:
        timings = time_steps(
            step,
            device=workload.device,
            num_steps=spec.steps,
            warmup=WARMUP_STEPS,
            started=lambda: window.enter_context(sampler),
            progress=lambda done: progress(f"timing step {done} of {spec.steps}", 0.2 + 0.4 * done / spec.steps),
        )
        # Steps that are not timed: the energy of a short window means nothing.
        more = keep_going(
            step, device=workload.device, first=spec.steps, seconds=sampler.missing_s(), step_ms=median_ci(timings)[0]
        )
    return timings, per_step(sampler.summary(), _requests(workload, spec.steps + more), spec.steps + more)


def timed_module(workload: Workload) -> nn.Module:
    """The module that is timed; the other passes look at the eager one, whose modules still have names."""
    kind = workload.spec.compile
    if kind == "none":
        return workload.module
    for module in workload.module.modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:  # sparse gradients stay eager
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    compiled: nn.Module = torch.compile(  # type: ignore[assignment]
        workload.module, mode="reduce-overhead" if kind == "cudagraphs" else None, dynamic=True
    )
    return compiled


def _count(workload: Workload, index: int) -> Count:
    """Count one input set, and hold the count against the closed form where the model has one."""
    count = count_step(workload.module, lambda tracker: run_step(workload, index, phase=tracker.phase))
    if workload.needed is not None:
        exact, _ = workload.needed(workload.inputs[index])
        counted = (count.total("fwd").model, count.total("bwd").model)
        if counted != (exact.fwd, exact.bwd):
            raise ToolBroke(
                f"two counts of {workload.spec.model}'s model FLOPs disagree: operators {counted}, closed form "
                f"{(exact.fwd, exact.bwd)}; no MFU is reported from either"
            )
    return count


def _ceilings(
    workload: Workload, counts: list[Count], calibration: Calibration, sheet_tflops: float | None
) -> Ceilings:
    measured = calibration.gemm_tflops[workload.dtype]
    seen = {DTYPE_NAMES.get(name) for count in counts for work in count.work.values() for name in work.dtypes}
    others: dict[str, float] = {
        name: load_or_calibrate(workload.device, name).gemm_tflops[name]
        for name in DTYPES[workload.device.type]
        if name in seen and name != workload.dtype
    }
    return Ceilings(sheet_tflops or measured, measured, calibration.copy_gb_s, {workload.dtype: measured, **others})


def _mean_count(counts: list[Count], steps: int) -> Count:
    """The mean step: each input set weighs as often as the timing pass ran it."""
    mean = Count()
    for index, count in enumerate(counts):
        weight = len(range(index, steps, len(counts)))
        for key, work in count.work.items():
            mean.work[key].add(work, weight)
        mean.unknown_ops |= count.unknown_ops
        mean.impls |= count.impls
    for work in mean.work.values():
        work.divide(steps)
    return mean


def _assemble(workload: Workload, passes: Passes, memory: Any, device_peak: int | None, trace_path: str | None) -> Run:
    spec, timings = workload.spec, passes.timings_ms
    count = _mean_count(passes.counts, spec.steps)
    median, low, high = median_ci(timings)
    total_s = sum(timings) / 1e3
    total = count.total()
    requests = _requests(workload, spec.steps)
    padded = _padded(workload, count)

    def utilisation(flops: float, tflops: float | None) -> float | None:
        return None if tflops is None else flops * spec.steps / total_s / (tflops * 1e12)

    slices = slice_step(passes.attribution, count, passes.ceilings, median)
    measured = passes.ceilings.measured_tflops
    run = Run(
        workload=workload.description,
        environment=environment(workload.device),
        peak={
            "dtype": workload.dtype,
            "in_use": "measured" if passes.sheet_tflops is None else "datasheet",
            "datasheet_tflops": passes.sheet_tflops,
            "source": passes.sheet.source if passes.sheet else None,
            "measured_tflops": measured,
            "measured_date": passes.calibration.date,
            "measured_how": passes.calibration.how,
            "bandwidth_gb_s": passes.calibration.copy_gb_s,
            "datasheet_bandwidth_gb_s": passes.sheet.bandwidth_gb_s if passes.sheet else None,
            "by_dtype": peaks_by_dtype(workload.device, passes.calibration, passes.sheet, passes.ceilings.by_dtype),
        },
        step={
            "time_ms": {"median": median, "ci95_low": low, "ci95_high": high},
            "samples_per_s": requests / total_s,
            "requests_per_s": requests / total_s,
            "candidates_per_s": requests * workload.num_candidates / total_s,
            "timings_ms": timings,
            "num_input_sets": len(workload.inputs),
        },
        flops={
            "model": total.model,
            "per_request": total.model * spec.steps / requests,
            "per_candidate": total.model * spec.steps / (requests * workload.num_candidates),
            "padded": padded,
            "hardware": total.hardware,
            "coverage": _coverage(passes.attribution, count),
            "fwd_model": count.total("fwd").model,
            "bwd_model": count.total("bwd").model,
            "recomputed": total.recomputed,
            "counts_agree": workload.needed is not None,
            "unknown_ops": sorted(count.unknown_ops),
        },
        mfu=utilisation(total.model, passes.sheet_tflops),
        hfu=utilisation(total.hardware, passes.sheet_tflops),
        mfu_of_measured_peak=utilisation(total.model, measured) or 0.0,
        hfu_of_measured_peak=utilisation(total.hardware, measured) or 0.0,
        modules=module_rows(workload.module, slices, count, memory, passes.ceilings, median),
        kernels=kernel_rows(passes.attribution, median, passes.traced_steps),
        ledger=ledger_lines(slices, median),
        hotspots=hotspots(slices, median),
        memory={
            "peak_bytes": memory.peak_bytes,
            "by_kind": memory.by_kind,
            "phase": memory.phase,
            "device_peak_bytes": device_peak,
        },
        nvml=passes.nvml,
        trace={
            "steps": passes.traced_steps,
            "distortion": passes.attribution.span / 1e3 / passes.traced_steps / median,
            "attributed_share": passes.attribution.attributed_share(),
            "path": trace_path,
        },
        impls=dict(sorted(count.impls.items())),
        not_measured=_not_measured(workload, passes),
        warnings=list(workload.warnings),
    )
    if run.nvml["available"]:
        run.nvml["cross_check"] = cross_check(run)
    run.warnings += _warnings(run, workload)
    return run


def _requests(workload: Workload, steps: int) -> int:
    return sum(workload.num_samples[index % len(workload.inputs)] for index in range(steps))


def _padded(workload: Workload, count: Count) -> int:
    """Model FLOPs if every row were as long as its batch's longest; without a closed form, as far as ops tell it."""
    if workload.needed is None:
        return count.total().padded
    steps, sets = workload.spec.steps, len(workload.inputs)
    totals = [workload.needed(batch)[1].total for batch in workload.inputs]
    return round(sum(totals[i % sets] for i in range(steps)) / steps)


def _coverage(attribution: Attribution, count: Count) -> float:
    """Share of device time in operators whose FLOPs are known, or known to be none."""
    total = sum(attribution.by_operators.values())
    unknown = sum(time for names, time in attribution.by_operators.items() if not count.unknown_ops.isdisjoint(names))
    return 1.0 - unknown / total if total else 1.0


def _not_measured(workload: Workload, passes: Passes) -> list[str]:
    missing = []
    if passes.sheet_tflops is None:
        reason = (
            "no datasheet peak is kept for a CPU" if workload.device.type == "cpu" else "--peak measured was asked for"
        )
        missing.append(f"MFU and HFU against a datasheet: {reason}")
    missing += missing_counters(passes.nvml)
    if workload.spec.compile != "none":
        missing.append("modules of the compiled step: shares come from the eager step, the total from the compiled one")
    return missing


def _warnings(run: Run, workload: Workload) -> list[str]:
    """What bounds the claims of ``run``.

    Raises:
        ToolBroke: more than the datasheet's peak, which no device reaches.
    """
    found = []
    if run.mfu is not None and max(run.mfu, run.hfu or 0.0) > 1.0:
        raise ToolBroke(
            f"MFU {run.mfu:.1%}, HFU {run.hfu:.1%} of the datasheet peak: the FLOP count or the peak is wrong"
        )
    if max(run.mfu_of_measured_peak, run.hfu_of_measured_peak) > 1.0:
        found.append("above 100 % of the measured peak: calibrate again with `mfubench doctor --calibrate`")
    if run.flops["coverage"] < MIN_COVERAGE:
        names = ", ".join(run.flops["unknown_ops"])
        found.append(f"FLOP coverage {run.flops['coverage']:.0%}: nothing is known of the FLOPs of {names}")
    if run.trace["distortion"] > MAX_DISTORTION:
        found.append(
            f"the profiler made the traced step {run.trace['distortion']:.2f} times as long; shares are less sure"
        )
    low = min(
        (line for line in run.ledger if line.cause.startswith("inefficiency")), key=lambda line: line.ms, default=None
    )
    if low is not None and low.share < -0.01:
        found.append(
            f"{low.cause} is {low.share:.1%} of the step: faster than its floor, so a formula or the peak is off"
        )
    found += unsteady(run)
    twice = _shared_modules(workload.module)
    if twice:
        found.append(f"modules under two names are counted once, under the first: {', '.join(twice)}")
    return found


def _shared_modules(module: nn.Module) -> list[str]:
    first: Mapping[nn.Module, str] = {item: name for name, item in module.named_modules()}
    every = module.named_modules(remove_duplicate=False)
    return [f"{first[item]} = {name}" for name, item in every if first[item] != name]
