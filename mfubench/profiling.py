"""Profile a workload: run the passes, attribute, and put everything into one Run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mfu_kernels.errors import InvalidArgument

from .attribute.crosscheck import cross_check
from .attribute.fused import count_of_kernels, unseen
from .attribute.join import Attribution, attribute
from .attribute.ledger import hotspots, kernel_rows, ledger_lines, module_rows, slice_step
from .attribute.roofline import DTYPE_NAMES, Ceilings
from .attribute.steadiness import unsteady
from .errors import BadInput, MfubenchError, OutOfMemory, ToolBroke
from .exhausted import out_of_memory, release
from .measure.calibrate import DTYPES, Calibration, load_or_calibrate, peaks_by_dtype
from .measure.compiled import Compilation, run_eagerly
from .measure.count import Count, count_step
from .measure.environment import device_uuid, environment
from .measure.memory import MemoryPeak, peak_of_step
from .measure.nvml import NvmlSampler, missing_counters, per_step
from .measure.peaks import Datasheet, datasheet
from .measure.scopes import ScopeTracker
from .measure.stats import median_ci
from .measure.timing import keep_going, time_steps, wait_for
from .measure.trace import trace_steps
from .run import Run
from .user_code import short
from .workload.compilation import compiled
from .workload.prepare import prepare
from .workload.spec import TRACED_STEPS, WARMUP_STEPS, Workload, WorkloadSpec
from .workload.step import run_step

Progress = Callable[[str, float], None]
"""Told the stage in words and how much of the whole is done, 0 to 1."""
Keep = Callable[[Callable[[], Run]], None]
"""Given, once the step has been timed, what makes a Run of all that is known when it is called."""
NOT_MEASURED = "(not measured)"
LATER = {  # than the timing pass: what each pass brings
    "counts": "FLOPs, bytes, and MFU with them",
    "attribution": "modules, causes and kernels (the trace)",
    "memory": "memory by module and kind",
}
MAX_DISTORTION, MIN_COVERAGE = 1.2, 0.95


def _silent(_stage: str, _done: float) -> None:
    pass


def _drop(_known: Callable[[], Run]) -> None:
    pass


@dataclass(slots=True)
class Passes:
    """What the four passes brought, and the peaks that bound it; ``missing`` says why a pass brought nothing."""

    timings_ms: list[float]
    nvml: dict[str, Any]
    sheet_tflops: float | None
    sheet: Datasheet | None
    calibration: Calibration
    ceilings: Ceilings
    device_peak: int | None  # bytes, by the device's own account
    compilation: Compilation | None  # None where nothing was compiled
    trace_path: Path | None  # where the trace is kept
    counts: list[Count] | None = None
    attribution: Attribution | None = None
    memory: MemoryPeak | None = None
    missing: dict[str, str] = field(default_factory=lambda: dict.fromkeys(LATER, "not reached"))


def profile(
    spec: WorkloadSpec, *, progress: Progress = _silent, trace_path: Path | None = None, keep: Keep = _drop
) -> Run:
    """Build ``spec``'s workload, run the timing, count, trace and memory passes, and say where the time went.

    ``keep`` is for when the profile does not come to its end. A later pass than the timing that runs out of memory, or
    that a user's own model does not stand, is left out, and the Run says so.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: the workload cannot be built, or its step fails.
        ToolBroke: two independent counts of its FLOPs disagree.
    """
    progress("building the model and its batches, and a first step", 0.0)
    return profile_workload(prepare(spec), progress=progress, trace_path=trace_path, keep=keep)


def profile_workload(
    workload: Workload, *, progress: Progress = _silent, trace_path: Path | None = None, keep: Keep = _drop
) -> Run:
    """The same for a workload that is already there."""
    device = workload.device
    sheet, sheet_tflops = _datasheet(workload)
    _first_step(workload)
    progress("calibrating the device's peaks", 0.1)
    calibration = load_or_calibrate(device, workload.dtype)
    with compiled(workload) as compilation:
        if compilation is not None:
            progress("compiling", 0.15)
            with _told_as_input(workload, "the compiled step failed; --compile none, and no recipe, runs it eagerly"):
                for index in range(len(workload.inputs)):
                    run_step(workload, index)
        timings, nvml = _timing_pass(workload, progress)
        compilation = compilation if compilation is not None and compilation.happened else None
        device_peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        ceilings = _ceilings(workload, (), calibration, sheet_tflops)
        passes = Passes(timings, nvml, sheet_tflops, sheet, calibration, ceilings, device_peak, compilation, trace_path)
        keep(lambda: _assemble(workload, passes))
        later: tuple[tuple[str, str, float, Callable[[], Any]], ...] = (
            ("counts", "counting FLOPs and bytes", 0.6, lambda: _counts(workload, passes)),
            ("attribution", "tracing", 0.75, lambda: _attribution(workload, compilation, trace_path)),
            ("memory", "measuring memory", 0.9, lambda: _memory(workload)),
        )
        for name, stage, done, measure in later:
            progress(stage, done)
            _attempt(workload, passes, name, measure)
    return _assemble(workload, passes)


def _attempt(workload: Workload, passes: Passes, name: str, measure: Callable[[], Any]) -> None:
    """Run one of the later passes; if it runs out of memory, or breaks on a user's model, note why instead."""
    try:
        setattr(passes, name, measure())
        del passes.missing[name]
    except (MfubenchError, InvalidArgument):
        raise
    except Exception as error:
        exhausted = out_of_memory(error, workload.device)
        if exhausted is None and workload.needed is not None:
            raise  # a model of the zoo with inputs of ours: a defect
        passes.missing[name] = (
            f"out of memory: {exhausted}" if exhausted else f"the model's step fails in it: {short(error)}"
        )
    if name in passes.missing:
        release(workload.module.parameters(), workload.device)


def _attribution(workload: Workload, compilation: Compilation | None, trace_path: Path | None) -> Attribution:
    def traced(tracker: ScopeTracker, index: int) -> None:
        run_step(workload, index, phase=tracker.phase)

    trace = trace_steps(
        workload.module,
        traced,
        device=workload.device,
        num_steps=TRACED_STEPS,
        keep=trace_path,
        compilation=compilation,
    )
    return attribute(trace, workload.device.type)


def _memory(workload: Workload) -> MemoryPeak:
    with run_eagerly():
        return peak_of_step(
            workload.module, workload.optimizers, lambda tracker: run_step(workload, 0, phase=tracker.phase)
        )


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
    """One step as it was written, whose failure is the input's: a forward, loss or backward that does not run."""
    with run_eagerly(), _told_as_input(workload, "the model's step failed"):
        run_step(workload, 0)
        wait_for(workload.device)


@contextmanager
def _told_as_input(workload: Workload, what: str) -> Iterator[None]:
    """Tell an error inside as bad input, with how much memory was asked for and free if that is what lacked."""
    try:
        yield
    except (MfubenchError, InvalidArgument):
        raise
    except Exception as error:
        exhausted = out_of_memory(error, workload.device)
        if exhausted:
            message = f"the step ran out of memory: {exhausted}; use a smaller --batch-size or --size"
            raise OutOfMemory(message) from error
        if workload.needed is not None and not isinstance(error, RuntimeError):
            raise  # a model of the zoo with inputs of ours: a defect, not bad input
        raise BadInput(f"{what}: {short(error)}") from error


def _timing_pass(workload: Workload, progress: Progress) -> tuple[list[float], dict[str, Any]]:
    spec = workload.spec

    def step(index: int) -> None:
        run_step(workload, index)

    if workload.device.type == "cuda":  # what calibrating and compiling took is not the step's
        torch.cuda.reset_peak_memory_stats(workload.device)
    sampler = NvmlSampler(device_uuid(workload.device))
    with ExitStack() as window, _told_as_input(workload, "the model's step failed"):
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


def _counts(workload: Workload, passes: Passes) -> list[Count]:
    counts = [_count(workload, index) for index in range(len(workload.inputs))]
    passes.ceilings = _ceilings(workload, counts, passes.calibration, passes.sheet_tflops)
    return counts


def _count(workload: Workload, index: int) -> Count:
    """Count one input set, and hold the count against the closed form where the model has one."""
    with run_eagerly():
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
    workload: Workload, counts: Sequence[Count], calibration: Calibration, sheet_tflops: float | None
) -> Ceilings:
    measured = calibration.gemm_tflops[workload.dtype]
    seen = {DTYPE_NAMES.get(name) for count in counts for work in count.work.values() for name in work.dtypes}
    others: dict[str, float] = {
        name: load_or_calibrate(workload.device, name).gemm_tflops[name]
        for name in DTYPES[workload.device.type]
        if name in seen and name != workload.dtype and (workload.dtype, name) != ("tf32", "fp32")
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


def _assemble(workload: Workload, passes: Passes) -> Run:
    spec, timings = workload.spec, passes.timings_ms
    attribution, memory = passes.attribution or Attribution(), passes.memory or MemoryPeak(0, NOT_MEASURED, {})
    count = _mean_count(passes.counts or [], spec.steps)
    median, low, high = median_ci(timings)
    total_s = sum(timings) / 1e3
    total = count.total()
    requests = _requests(workload, spec.steps)
    padded = _padded(workload, count)

    def utilisation(flops: float, tflops: float | None) -> float | None:
        return None if tflops is None else flops * spec.steps / total_s / (tflops * 1e12)

    placed = count_of_kernels(count, attribution, attribution.steps)
    slices = slice_step(attribution, placed, passes.ceilings, median)
    measured = passes.ceilings.measured_tflops
    run = Run(
        workload=workload.description,
        environment=environment(workload.device),
        peak=_peak(workload, passes),
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
            "coverage": _coverage(attribution, count),
            "fwd_model": count.total("fwd").model,
            "bwd_model": count.total("bwd").model,
            "recomputed": total.recomputed,
            "counts_agree": workload.needed is not None,
            "unknown_ops": sorted(count.unknown_ops),
        },
        mfu=utilisation(total.model, passes.sheet_tflops),
        hfu=utilisation(total.hardware, passes.sheet_tflops),
        mfu_of_measured_peak=utilisation(total.model, measured),
        hfu_of_measured_peak=utilisation(total.hardware, measured),
        modules=module_rows(workload.module, slices, placed, memory, passes.ceilings, median),
        kernels=kernel_rows(attribution, median),
        ledger=ledger_lines(slices, median),
        hotspots=hotspots(slices, median),
        memory={
            "peak_bytes": memory.peak_bytes,
            "by_kind": memory.by_kind,
            "phase": memory.phase,
            "device_peak_bytes": passes.device_peak,
        },
        nvml=passes.nvml,
        trace={
            "steps": attribution.steps if passes.attribution else 0,
            "distortion": attribution.span / 1e3 / attribution.steps / median,
            "attributed_share": attribution.attributed_share(),
            "path": str(passes.trace_path) if passes.trace_path else None,
        },
        impls=dict(sorted(count.impls.items())),
        not_measured=_not_measured(workload, passes),
        warnings=list(workload.warnings),
    )
    if run.nvml["available"]:
        run.nvml["cross_check"] = cross_check(run)
    _blank(run, passes)
    run.warnings += _warnings(run, workload, passes.calibration)
    return run


def _peak(workload: Workload, passes: Passes) -> dict[str, Any]:
    """The peak in use and its source, and what was measured on this device beside it."""
    return {
        "dtype": workload.dtype,
        "in_use": "measured" if passes.sheet_tflops is None else "datasheet",
        "datasheet_tflops": passes.sheet_tflops,
        "source": passes.sheet.source if passes.sheet else None,
        "measured_tflops": passes.ceilings.measured_tflops,
        "measured_date": passes.calibration.date,
        "measured_how": passes.calibration.how,
        "measured_cpu_share": passes.calibration.cpu_share,
        "bandwidth_gb_s": passes.calibration.copy_gb_s,
        "datasheet_bandwidth_gb_s": passes.sheet.bandwidth_gb_s if passes.sheet else None,
        "by_dtype": peaks_by_dtype(workload.device, passes.calibration, passes.sheet, passes.ceilings.by_dtype),
    }


def _requests(workload: Workload, steps: int) -> int:
    return sum(workload.num_samples[index % len(workload.inputs)] for index in range(steps))


def _blank(run: Run, passes: Passes) -> None:
    """Take back what stands for a pass that brought nothing: unknown is not zero."""
    if passes.counts is None:
        run.flops |= {key: None for key, value in run.flops.items() if type(value) in (int, float)}
        run.mfu = run.hfu = run.mfu_of_measured_peak = run.hfu_of_measured_peak = None
    if passes.attribution is None:
        run.trace |= {"steps": 0, "distortion": None, "attributed_share": None, "path": None}
        run.flops["coverage"] = None
    if passes.memory is None:
        run.memory["peak_bytes"] = None


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
    missing += [f"{LATER[name]}: {reason}" for name, reason in passes.missing.items()]
    if passes.compilation is not None:
        missing += unseen(passes.compilation, passes.attribution)
    return missing


def _warnings(run: Run, workload: Workload, calibration: Calibration) -> list[str]:
    """What bounds the claims of ``run``.

    Raises:
        ToolBroke: more than the datasheet's peak, which no device reaches.
    """
    found = []
    if run.mfu is not None and max(run.mfu, run.hfu or 0.0) > 1.0:
        raise ToolBroke(
            f"MFU {run.mfu:.1%}, HFU {run.hfu:.1%} of the datasheet peak: the FLOP count or the peak is wrong"
        )
    if max(run.mfu_of_measured_peak or 0.0, run.hfu_of_measured_peak or 0.0) > 1.0:
        found.append("above 100 % of the measured peak: calibrate again with `mfubench doctor --calibrate`")
    if calibration.busy:
        found.append(
            f"the peaks were measured on a busy machine ({calibration.cpu_share:.0%} of their threads' time on a "
            "processor): they are too low, and not kept; run it again when nothing else runs"
        )
    if (run.flops["coverage"] or 1.0) < MIN_COVERAGE:
        names = ", ".join(run.flops["unknown_ops"])
        found.append(f"FLOP coverage {run.flops['coverage']:.0%}: nothing is known of the FLOPs of {names}")
    if (run.trace["distortion"] or 0.0) > MAX_DISTORTION:
        found.append(
            f"the profiler made the traced step {run.trace['distortion']:.2f} times as long; shares are less sure"
        )
    low = min(
        (line for line in run.ledger if line.cause.startswith("inefficiency")), key=lambda line: line.ms, default=None
    )
    if low is not None and low.share < -0.01:
        found.append(
            f"{low.cause} is {low.share:.1%} of the step: faster than its floor, so a formula is off, or the peak: "
            "`mfubench doctor --calibrate` measures it anew"
        )
    found += unsteady(run)
    found += [f"a pass was left out: {line}" for line in run.not_measured if line.startswith(tuple(LATER.values()))]
    twice = _shared_modules(workload.module)
    if twice:
        found.append(f"modules under two names are counted once, under the first: {', '.join(twice)}")
    return found


def _shared_modules(module: nn.Module) -> list[str]:
    first: Mapping[nn.Module, str] = {item: name for name, item in module.named_modules()}
    every = module.named_modules(remove_duplicate=False)
    return [f"{first[item]} = {name}" for name, item in every if first[item] != name]
