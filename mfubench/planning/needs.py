"""What a step needs on a GPU that is not here: its work and its memory, counted without computing a number."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from math import ceil
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mfu_kernels.modes import compile_ahead
from mfubench.errors import BadInput, OutOfMemory
from mfubench.kernels.ahead import activate, recorded, refuse_interpreter
from mfubench.kernels.targets import TARGETS
from mfubench.measure.count import Count
from mfubench.measure.memory import MemoryPeak
from mfubench.measure.scopes import OPTIMIZER
from mfubench.profiling import count_of, first_step, memory_of
from mfubench.workload.ahead import without_numbers
from mfubench.workload.autocast import GpuAutocast
from mfubench.workload.prepare import DEFAULT_BATCH_SIZE, prepare
from mfubench.workload.spec import Workload, WorkloadSpec
from mfubench.workload.step import Phase, run_passes, unmarked

from .gpu import Gpu

FURTHEST = 4  # times the requests that were asked for
TO = 0.01


@dataclass(frozen=True, slots=True)
class Counted:
    """A step that was counted; ``notes`` bound what the numbers say."""

    workload: Workload
    count: Count
    memory: MemoryPeak
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a step of ``requests`` requests needs; ``workload`` is the workload part of a Run.

    ``peak_at`` gives the bytes of the peak of another number of requests, None where that takes too long to find out.
    ``notes`` bound what the numbers say.
    """

    workload: dict[str, Any]
    requests: int
    count: Count
    memory: MemoryPeak
    peak_at: Callable[[int], int] | None = None
    notes: list[str] = field(default_factory=list)

    def most_requests(self, memory_bytes: float) -> tuple[int, bool] | None:
        """Most requests whose peak is within ``memory_bytes``, to 1 %; and whether there may be more than that.

        The peak grows with the batch, and faster where the batch is larger: a line through two batches errs upwards
        beyond them, downwards between them. So it is counted on until the answer lies between two, as far as
        ``FURTHEST`` times as many as were asked for, or as this machine can hold. None where nothing tells.
        """
        if self.peak_at is None:
            return None
        fits, beyond = (0, 0), (0, 0)
        asked, tried = self.requests, (self.requests, self.memory.peak_bytes)
        while True:
            if tried[1] <= memory_bytes:
                fits = max(fits, tried)
            else:
                beyond = min(beyond, tried) if beyond[0] else tried
            if fits[0] >= FURTHEST * asked:
                return fits[0], True
            if not beyond[0]:
                following = FURTHEST * asked
            elif beyond[0] - fits[0] <= max(1, ceil(TO * fits[0])):
                return fits[0], False
            elif not fits[0]:
                following = beyond[0] // 2
            else:
                share = (memory_bytes - fits[1]) / (beyond[1] - fits[1])
                between = int(fits[0] + share * (beyond[0] - fits[0]))
                following = min(max(between, ceil(fits[0] * (1 + TO))), beyond[0] - 1)
            if following < 1:
                return 0, False
            try:
                tried = (following, self.peak_at(following))
            except OutOfMemory:  # of this machine, which has to hold the batch
                return (fits[0], True) if fits[0] else None


def needs_of(spec: WorkloadSpec, gpu: Gpu) -> Needs:
    """What one step of ``spec`` needs on ``gpu``, as `step_on` counts it.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: what `step_on` raises.
    """
    counted = step_on(gpu, spec)
    workload = counted.workload
    described = workload.description | {"dtype": gpu.dtype, "device": "cuda"}

    @cache
    def peak_at(requests: int) -> int:
        return peak_on(gpu, replace(spec, batch_size=requests))

    own = workload.needed is None
    return Needs(
        described, workload.num_samples[0], counted.count, counted.memory, None if own else peak_at, counted.notes
    )


def step_on(gpu: Gpu, spec: WorkloadSpec) -> Counted:
    """Count one step of ``spec`` as ``gpu`` would run it, its kernels included; and what bounds what that says.

    A model of the zoo is built and run without memory for its numbers. A user's own may ask for them: it runs on this
    CPU, whose operators are counted, and in which it must fit.

    Raises:
        BadInput: what `prepare` refuses, a step that fails, or kernels that are asked for where none run.
        mfu_kernels.errors.InvalidArgument: the same, from the packages below.
    """
    spec = _as_on(gpu, spec)
    return _on_this_cpu(spec, gpu) if ":" in spec.model else _without_numbers(spec)


def work_on(gpu: Gpu, spec: WorkloadSpec) -> Count:
    """The work of one step of ``spec``, as `step_on` counts it; its memory, which takes as long to find, is not.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: what `step_on` raises.
    """
    spec = _as_on(gpu, spec)
    if ":" in spec.model:
        return _on_this_cpu(spec, gpu).count
    with _ready(spec) as workload:
        return count_of(workload, 0, _step)


def peak_on(gpu: Gpu, spec: WorkloadSpec) -> int:
    """Bytes of the peak of one step of a model of the zoo, as `step_on` has them; its work is not counted.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: what `step_on` raises.
    """
    with _ready(_as_on(gpu, spec)) as workload:
        return memory_of(workload, _step).peak_bytes


def _as_on(gpu: Gpu, spec: WorkloadSpec) -> WorkloadSpec:
    """One step of ``spec`` on this CPU with what ``gpu`` would be asked for, whose kernels are chosen from here on."""
    refuse_interpreter()
    activate(TARGETS[gpu.target])
    return replace(
        spec,
        device="cpu",
        compile="none",
        steps=1,
        impl=_impl(spec.impl, gpu),
        dtype="fp32" if gpu.dtype == "tf32" else gpu.dtype,  # of a CPU; the same operators
        batch_size=spec.batch_size if ":" in spec.model else spec.batch_size or DEFAULT_BATCH_SIZE["cuda"],
    )


def _impl(impl: str, gpu: Gpu) -> str:
    if gpu.runs_kernels:
        return impl
    if "triton" in impl:
        raise BadInput(f"--impl {impl}: kernels need an sm_80 or later, and {gpu.name} is none; use --impl reference")
    return "reference" if impl == "auto" else impl


def _on_this_cpu(spec: WorkloadSpec, gpu: Gpu) -> Counted:
    """With numbers but where kernels, ours or its own, would have written them."""
    foreign: dict[str, None] = {}
    workload = prepare(spec)
    doubts = list(workload.warnings)
    with ExitStack() as stack:
        stack.enter_context(recorded(lambda launch: foreign.update({launch.source.fn.fn.__name__: None})))
        if gpu.runs_kernels:
            stack.enter_context(_kernels_left_out())
        stack.enter_context(GpuAutocast())
        first_step(workload)
        count, memory = count_of(workload, 0), memory_of(workload)
    notes = ["its operators are those of this CPU, where a GPU may have others", *doubts]
    if foreign:
        notes.append(f"FLOPs and bytes of its own kernels, {', '.join(foreign)}, are not known, and missing here")
    if workload.may_be_compiled:
        notes.append("what of it is compiled, if anything is, is counted as it was written: fused it moves fewer bytes")
    return Counted(workload, count, memory, notes)


def _without_numbers(spec: WorkloadSpec) -> Counted:
    with _ready(spec) as workload:
        count, memory = count_of(workload, 0, _step), memory_of(workload, _step)
    sparse = any(isinstance(optimizer, torch.optim.Adagrad) for optimizer in workload.optimizers)
    unknown = "the bytes that updating the rows of large tables moves are not known without their numbers"
    return Counted(workload, count, memory, [unknown] if sparse else [])


@contextmanager
def _ready(spec: WorkloadSpec) -> Iterator[Workload]:
    """A model of the zoo once its optimizers have made their state, as they do in a first step; without numbers."""
    building = FakeTensorMode(allow_non_fake_inputs=True)
    with _kernels_left_out():
        workload = prepare(spec, building=building)
        with without_numbers(building):
            if workload.optimizers:
                _step(workload, 0)
            yield workload


def _kernels_left_out() -> AbstractContextManager[None]:
    """Inside, ops choose their kernels as on a GPU, and launch none."""
    return compile_ahead(lambda compiled: None, lambda kernel, key: "none")


def _step(workload: Workload, index: int, *, phase: Phase = unmarked) -> None:
    """A step without numbers: an update that depends on them, as that of a large table's rows, is left out."""
    run_passes(workload, workload.inputs[index], phase=phase)
    with phase(OPTIMIZER):
        for optimizer in workload.optimizers:
            with suppress(DataDependentOutputException):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
