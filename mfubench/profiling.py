"""Profile a workload: run the passes, attribute, and have one Run made of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from mfu_kernels.errors import InvalidArgument

from .assemble import assemble
from .attribute.attribution import Attribution
from .attribute.join import attribute
from .attribute.roofline import DTYPE_NAMES, Ceilings
from .caveats import broken_graphs
from .errors import BadInput, MfubenchError, OutOfMemory, ToolBroke
from .exhausted import out_of_memory, release
from .measure.calibrate import DTYPES, Calibration, load_or_calibrate
from .measure.compiled import Compilation, run_eagerly
from .measure.count import Count, count_step
from .measure.environment import device_uuid
from .measure.memory import MemoryPeak, peak_of_step
from .measure.nvml import NvmlSampler, per_step
from .measure.operators import tensors_of
from .measure.peaks import Datasheet, datasheet
from .measure.scopes import ScopeTracker
from .measure.stats import median_ci
from .measure.timing import keep_going, time_alone, time_steps, wait_for
from .measure.trace import trace_steps
from .passes import Passes
from .progress import Progress, silent
from .ranks import with_others
from .run import Run
from .user_code import located
from .workload.compilation import compiled, settling_steps
from .workload.loader import Fed, Loader
from .workload.prepare import prepare
from .workload.spec import TRACED_STEPS, WARMUP_STEPS, Workload, WorkloadSpec
from .workload.step import Phase, run_on, run_passes, run_step, update
from .workload.update import Update

UNLIKE = 0.01  # by so much, two steps need different FLOPs: more than a router's choice that training moves a little
FED_STEPS = 20  # that a loader feeds, of an inference

Keep = Callable[[Callable[[], Run]], None]
"""Given, once the step has been timed, what makes a Run of all that is known when it is called."""
Step = Callable[..., None]
"""Runs a step of a workload on the input set of an index, and marks its parts with ``phase``."""


def _drop(_known: Callable[[], Run]) -> None:
    pass


def profile(
    spec: WorkloadSpec, *, progress: Progress = silent, trace_path: Path | None = None, keep: Keep = _drop
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
    workload: Workload, *, progress: Progress = silent, trace_path: Path | None = None, keep: Keep = _drop
) -> Run:
    """The same for a workload that is already there."""
    device = workload.device
    sheet, sheet_tflops = _datasheet(workload)
    first_step(workload)
    progress("calibrating the device's peaks", 0.1)
    calibration = load_or_calibrate(device, workload.dtype)
    with compiled(workload) as compilation:
        if compilation is not None:
            progress("compiling", 0.15)
            with _told_as_input(workload, partial(_failed, workload, compilation)):
                for index in range(settling_steps(workload)):
                    run_step(workload, index)
        timings, nvml = _timing_pass(workload, progress)
        alone = _alone(workload, timings, progress)
        compilation = compilation if compilation is not None and compilation.happened else None
        device_peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        ceilings = _ceilings(workload, (), calibration, sheet_tflops)
        passes = Passes(timings, nvml, sheet_tflops, sheet, calibration, ceilings, device_peak, compilation, trace_path)
        passes.alone_ms = alone
        if workload.loader is None:
            del passes.missing["fed"]
        keep(lambda: assemble(workload, passes))
        later: list[tuple[str, str, float, Callable[[], Any]]] = [
            ("counts", "counting FLOPs and bytes", 0.6, lambda: _counts(workload, passes)),
            ("attribution", "tracing", 0.75, lambda: _attribution(workload, compilation, trace_path)),
            ("memory", "measuring memory", 0.9, lambda: memory_of(workload)),
        ]
        if (loader := workload.loader) is not None:
            later.insert(
                0, ("fed", "timing steps that the loader feeds", 0.58, lambda: _fed(workload, loader, progress))
            )
        for name, stage, done, measure in later:
            progress(stage, done)
            _attempt(workload, passes, name, measure)
    workload.warnings += broken_graphs(workload.spec.compile, compilation)
    return with_others(assemble(workload, passes), workload.ranks)


def _attempt(workload: Workload, passes: Passes, name: str, measure: Callable[[], Any]) -> None:
    """Run one of the later passes; if it runs out of memory, or breaks on a user's model, note why instead."""
    try:
        setattr(passes, name, measure())
        del passes.missing[name]
    except (MfubenchError, InvalidArgument):
        raise
    except (Exception, SystemExit) as error:
        exhausted = out_of_memory(error, workload.device)
        if exhausted is None and workload.needed is not None:
            raise  # a model of the zoo with inputs of ours: a defect
        if not workload.ranks.alone:  # the others wait for it, and would for minutes
            raise BadInput(f"{name}: the model's step fails in this pass: {located(error)}") from error
        passes.missing[name] = (
            f"out of memory: {exhausted}" if exhausted else f"the model's step fails in it: {located(error)}"
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


def memory_of(workload: Workload, step: Step = run_step) -> MemoryPeak:
    """What is alive at the peak of a ``step``, run eagerly; a user's batch that it need not move is there before it."""
    own = [] if workload.needed is not None else tensors_of(workload.inputs[0])
    batch = [tensor for tensor in own if tensor.device.type == workload.device.type]
    with run_eagerly():
        return peak_of_step(
            workload.module, workload.optimizers, lambda tracker: step(workload, 0, phase=tracker.phase), batch
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


def first_step(workload: Workload) -> None:
    """One step as it was written, whose failure is the input's: a forward, loss or backward that does not run.

    Compiled it may need less memory, as attention does that makes its scores in blocks.

    Raises:
        BadInput: it does not run, or not in the memory that there is, and nothing compiles it.
    """
    lacked = ""
    try:
        _as_written(workload)
    except OutOfMemory as error:
        if not workload.compiles:
            raise
        lacked = str(error)
    if lacked:  # and not above, where the error still holds what the step made
        workload.warnings.append(f"as it was written, uncompiled, {lacked}")
        release(workload.module.parameters(), workload.device)


def _as_written(workload: Workload) -> None:
    before = _versions(workload)
    with run_eagerly(), _told_as_input(workload, "the model's step failed"):
        _, loss = run_passes(workload, workload.inputs[0])
        if loss is not None:
            update(workload)
            if not loss.isfinite().all():
                workload.warnings.append(f"the first step's loss is {loss.tolist()}: it trains nothing")
        wait_for(workload.device)
    if _versions(workload) != before:
        workload.warnings.append("the model changes its batch's tensors in place: a step finds what another left")


def _versions(workload: Workload) -> list[int]:
    """How often each tensor of a user's first batch was changed in place."""
    tensors = tensors_of(workload.inputs[0]) if workload.needed is None else ()
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


def _failed(workload: Workload, compilation: Compilation) -> str:
    """What failed where the first step, which nothing compiled, did not: a compiler may only have been imported."""
    if compilation.happened or workload.description["compile"] != "none":
        return "the compiled step failed; --compile none, and no recipe, runs it eagerly"
    return "the model's step failed after others did not"


@contextmanager
def _told_as_input(workload: Workload, what: str | Callable[[], str]) -> Iterator[None]:
    """Tell an error inside as bad input, with how much memory was asked for and free if that is what lacked."""
    try:
        yield
    except (MfubenchError, InvalidArgument):
        raise
    except (Exception, SystemExit) as error:
        exhausted = out_of_memory(error, workload.device)
        if exhausted:
            message = f"the step ran out of memory: {exhausted}; use a smaller --batch-size or --size"
            raise OutOfMemory(message) from error
        if workload.needed is not None and not isinstance(error, RuntimeError):
            raise  # a model of the zoo with inputs of ours: a defect, not bad input
        told = what if isinstance(what, str) else what()
        raise BadInput(f"{told}: {located(error)}{_hint(error, workload.dtype)}") from error


def _hint(error: BaseException, dtype: str) -> str:
    """What helps against an error that does not say so itself, in a step that runs in ``dtype``."""
    if "active drivers" in str(error):  # Triton's words
        return "; a Triton kernel needs a GPU, and runs on a CPU where TRITON_INTERPRET=1 is set before Python starts"
    if dtype == "bf16" and "bfloat16" in str(error).lower():
        return (
            "; with --dtype bf16 the step runs under autocast, which leaves some operators with bf16 that do not take "
            "it, in the forward or in its backward: use --dtype fp32, or cast what they are given with .float()"
        )
    return ""


def _timing_pass(workload: Workload, progress: Progress) -> tuple[list[float], dict[str, Any]]:
    spec = workload.spec
    progress("warming up", 0.2)

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
            step, device=workload.device, first=spec.steps, seconds=sampler.missing_s(),
            step_ms=workload.ranks.agreed(median_ci(timings)[0]), agreed=workload.ranks.agreed,
        )  # fmt: skip
    return timings, per_step(sampler.summary(), workload.num_requests(spec.steps + more), spec.steps + more)


def _alone(workload: Workload, timings: list[float], progress: Progress) -> list[float] | None:
    """How long an answer of an inference takes; on a CPU no step begins before the one before has ended anyway."""
    if workload.spec.mode == "train":
        return None
    if workload.device.type == "cpu":
        return timings
    progress("timing steps that are waited for", 0.58)
    with _told_as_input(workload, "the model's step failed"):
        return time_alone(
            lambda index: run_step(workload, index), device=workload.device, num_steps=workload.spec.steps
        )


def _fed(workload: Workload, loader: Loader, progress: Progress) -> Fed:
    """Steps as a training has them, each on the loader's next batch; warming up uses up what it had ready.

    Of an inference there may be as many as a latency's percentiles need; a rate needs fewer.
    """
    ahead = max(workload.ranks.gathered(loader.ahead))  # as many steps on each rank
    steps, requests, drawing_s, begun = workload.spec.steps, 0, 0.0, 0
    if workload.spec.mode == "infer":
        steps = min(steps, max(FED_STEPS, 2 * ahead))

    def start() -> None:
        nonlocal requests, drawing_s, begun
        requests, drawing_s, begun = 0, 0.0, loader.begun

    def step(_index: int) -> None:
        nonlocal requests, drawing_s
        asked = perf_counter()
        batch = loader.draw()
        drawing_s += perf_counter() - asked
        requests += loader.rows_of(batch)
        run_on(workload, batch)

    try:
        timings = time_steps(
            step,
            device=workload.device,
            num_steps=steps,
            warmup=WARMUP_STEPS + ahead,
            started=start,
            progress=lambda done: progress(f"timing step {done} of {steps} that the loader feeds", 0.58),
        )
    finally:
        loader.end()
    return Fed(timings, requests, 1e3 * drawing_s, loader.begun - begun)


def _counts(workload: Workload, passes: Passes) -> list[Count]:
    counts = [_with_update(workload, index) for index in range(len(workload.inputs))]
    if workload.needed is None:
        _tell_if_unlike(workload, counts[0], count_of(workload, 0))
    passes.ceilings = _ceilings(workload, counts, passes.calibration, passes.sheet_tflops)
    return counts


def _with_update(workload: Workload, index: int) -> Count:
    """The count of a step, with the least that its update must move."""
    found = Update(workload.optimizers)

    def step(workload: Workload, index: int, *, phase: Phase) -> None:
        run_step(workload, index, phase=found.seen_in(phase))

    count = count_of(workload, index, step)
    count.update_bytes = found.least_bytes()
    return count


def _tell_if_unlike(workload: Workload, one: Count, again: Count) -> None:
    """Warn where two steps on one batch need other FLOPs: those that were timed were neither of them."""
    first, second = one.total().model, again.total().model
    if max(first, second) > min(first, second) * (1 + UNLIKE):
        workload.warnings.append(
            f"a step on the same batch needed {first:.4g} model FLOPs, and later {second:.4g}: it draws at random, or "
            "grows; the FLOPs told are not those of the steps that were timed"
        )


def count_of(workload: Workload, index: int, step: Step = run_step) -> Count:
    """Count a ``step`` on one input set, and hold the count against the closed form where the model has one.

    Raises:
        ToolBroke: they disagree.
    """
    with run_eagerly():
        count = count_step(workload.module, lambda tracker: step(workload, index, phase=tracker.phase))
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
