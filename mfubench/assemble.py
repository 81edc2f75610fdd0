"""One Run of what the passes brought: rates over the timed steps, FLOPs of the mean step, shares from the trace."""

from typing import Any

from .attribute.attribution import Attribution
from .attribute.crosscheck import cross_check
from .attribute.fused import count_of_kernels
from .attribute.hotspots import hotspots
from .attribute.ledger import kernel_rows, ledger_lines, module_rows, scales, slice_step
from .caveats import not_measured, warnings
from .measure.calibrate import peaks_by_dtype
from .measure.count import Count
from .measure.environment import environment
from .measure.memory import MemoryPeak
from .measure.stats import median_ci, tail
from .passes import Passes
from .run import FLOP_CONVENTIONS, KernelConfig, Run
from .workload.loader import Fed
from .workload.spec import Workload

NOT_MEASURED = "(not measured)"


def assemble(workload: Workload, passes: Passes) -> Run:
    """The Run, of as many passes as there were.

    Raises:
        ToolBroke: an MFU or HFU above 100 % of the datasheet's peak.
    """
    steps, timings = workload.spec.steps, passes.timings_ms
    attribution, memory = passes.attribution or Attribution(), passes.memory or MemoryPeak(0, NOT_MEASURED, {})
    count = _mean_count(passes.counts or [], steps)
    median, low, high = median_ci(timings)
    total_s = sum(timings) / 1e3
    total, requests = count.total(), workload.num_requests(steps)

    def utilisation(flops: float, tflops: float | None) -> float | None:
        return None if tflops is None else flops * steps / total_s / (tflops * 1e12)

    placed = count_of_kernels(count, attribution, attribution.steps)
    slices = slice_step(attribution, placed, passes.ceilings, median)
    modules = module_rows(workload.module, slices, placed, memory, passes.ceilings, median)
    kernels = kernel_rows(attribution, median)
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
            "latency_ms": None if passes.alone_ms is None else tail(passes.alone_ms),
            "num_input_sets": len(workload.inputs),
            "loader": None if passes.fed is None else _loader(passes.fed, requests / total_s, workload.device.type),
        },
        flops=_flops(workload, count, attribution),
        mfu=utilisation(total.model, passes.sheet_tflops),
        hfu=utilisation(total.hardware, passes.sheet_tflops),
        mfu_of_measured_peak=utilisation(total.model, measured),
        hfu_of_measured_peak=utilisation(total.hardware, measured),
        modules=modules,
        kernels=kernels,
        ledger=ledger_lines(slices, median),
        hotspots=hotspots(modules, kernels, slices.floors, median),
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
            "operators": attribution.operators,
        },
        impls=dict(sorted(count.impls.items())),
        kernel_configs=[KernelConfig(*place, *chosen) for place, chosen in sorted(count.configs.items())],
        not_measured=not_measured(workload, passes),
        warnings=list(workload.warnings),
        flop_convention=FLOP_CONVENTIONS[workload.spec.mode],
        parallel=None if workload.ranks.alone else _parallel(workload, attribution, count, median),
    )
    if run.nvml["available"]:
        run.nvml["cross_check"] = cross_check(run)
    _blank(run, passes)
    run.warnings += warnings(run, workload, passes.calibration, count.dtypes(), attribution.elsewhere)
    return run


def _loader(fed: Fed, at_hand: float, device: str) -> dict[str, Any]:
    """What steps that a loader fed reached, and the share of their time that was waiting for it.

    A GPU still computes while the host waits for a batch: it is idle for no longer than that. Nor is it for longer than
    such steps are slower than those ``at_hand`` (in requests a second), if the batches that it is fed need as much.
    """
    total_ms = sum(fed.timings_ms)
    rate = fed.requests / (total_ms / 1e3)
    waited = fed.drawing_ms / total_ms
    return {
        "samples_per_s": rate,
        "waited_share": waited if device == "cpu" else max(0.0, min(waited, 1.0 - rate / at_hand)),
        "begun_again": fed.begun_again,
        "timings_ms": fed.timings_ms,
    }


def _mean_count(counts: list[Count], steps: int) -> Count:
    """The mean step: each input set weighs as often as the timing pass ran it."""
    mean = Count()
    for index, count in enumerate(counts):
        weight = len(range(index, steps, len(counts)))
        for key, work in count.work.items():
            mean.work[key].add(work, weight)
        mean.unknown_ops |= count.unknown_ops
        mean.impls |= count.impls
        mean.configs |= count.configs
        mean.update_bytes += weight * count.update_bytes
        for name, each in count.collectives.items():
            mean.collectives[name].add(each, weight)
    for work in mean.work.values():
        work.divide(steps)
    for collective in mean.collectives.values():
        collective.divide(steps)
    mean.update_bytes = round(mean.update_bytes / steps)
    return mean


def _parallel(workload: Workload, attribution: Attribution, count: Count, median: float) -> dict[str, Any]:
    """What this rank says to the others in a step, and how long that takes and is waited for."""
    scale, _ = scales(attribution, median)
    exposed = sum(attribution.communication.values())
    return {
        "rank": workload.ranks.rank,
        "world_size": workload.ranks.world_size,
        "backend": workload.ranks.backend,
        "exposed_ms": exposed * scale,
        "communication_ms": max(attribution.talking, exposed) * scale,
        "collectives": [
            {"name": name, "calls": each.calls, "bytes": each.bytes} for name, each in sorted(count.collectives.items())
        ],
    }


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


def _flops(workload: Workload, count: Count, attribution: Attribution) -> dict[str, Any]:
    """FLOPs of the mean step, and of a request and a candidate."""
    steps, total = workload.spec.steps, count.total()
    requests = workload.num_requests(steps)
    return {
        "model": total.model,
        "per_request": total.model * steps / requests,
        "per_candidate": total.model * steps / (requests * workload.num_candidates),
        "padded": _padded(workload, count),
        "hardware": total.hardware,
        "coverage": _coverage(attribution, count),
        "fwd_model": count.total("fwd").model,
        "bwd_model": count.total("bwd").model,
        "recomputed": total.recomputed,
        "counts_agree": True if workload.needed is not None else None,  # else the count above has raised
        "unknown_ops": sorted(count.unknown_ops),
    }


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


def _blank(run: Run, passes: Passes) -> None:
    """Take back what stands for a pass that brought nothing: unknown is not zero."""
    if passes.counts is None:
        run.flops |= {key: None for key, value in run.flops.items() if type(value) in (int, float)}
        run.mfu = run.hfu = run.mfu_of_measured_peak = run.hfu_of_measured_peak = None
    if passes.attribution is None:
        run.trace |= {"steps": 0, "distortion": None, "attributed_share": None, "path": None}
        run.flops["coverage"] = None
        for row in run.modules:
            row.verdict = "not measured"
    if passes.memory is None:
        run.memory["peak_bytes"] = None
