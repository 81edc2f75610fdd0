"""What a step needs on a GPU that is not here: its work and its memory, counted without computing a number."""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mfu_kernels.modes import compile_ahead
from mfubench.errors import BadInput
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


@dataclass(frozen=True, slots=True)
class Needs:
    """What a step of ``requests`` requests needs; ``workload`` is the workload part of a Run.

    ``other_batch``: another number of requests, and the bytes of its peak. ``notes`` bound what the numbers say.
    """

    workload: dict[str, Any]
    requests: int
    count: Count
    memory: MemoryPeak
    other_batch: tuple[int, int]
    notes: list[str] = field(default_factory=list)

    def largest_batch(self, memory_bytes: float) -> int | None:
        """Most requests whose peak is within ``memory_bytes``, by the line through two batches; None if all are."""
        at, peak = self.other_batch
        slope = (self.memory.peak_bytes - peak) / (self.requests - at)
        if slope <= 0:
            return None
        return max(0, int((memory_bytes - self.memory.peak_bytes) / slope + self.requests))


def needs_of(spec: WorkloadSpec, gpu: Gpu) -> Needs:
    """What one step of ``spec`` needs on ``gpu``, as `step_on` counts it, and another batch.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: what `step_on` raises.
    """
    workload, count, memory = step_on(gpu, spec)
    requests = workload.num_samples[0]
    other = requests // 2 or 2
    _, _, other_memory = step_on(gpu, replace(spec, batch_size=other))
    described = workload.description | {"dtype": gpu.dtype, "device": "cuda"}
    return Needs(described, requests, count, memory, (other, other_memory.peak_bytes), _notes(workload))


def step_on(gpu: Gpu, spec: WorkloadSpec) -> tuple[Workload, Count, MemoryPeak]:
    """Count one step of ``spec`` as ``gpu`` would run it, its kernels included.

    A model of the zoo is built and run without memory for its numbers. A user's own may ask for them: it runs on this
    CPU, whose operators are counted, and in which it must fit.

    Raises:
        BadInput: what `prepare` refuses, a step that fails, or kernels that are asked for where none run.
        mfu_kernels.errors.InvalidArgument: the same, from the packages below.
    """
    refuse_interpreter()
    own = ":" in spec.model
    spec = replace(
        spec,
        device="cpu",
        compile="none",
        steps=1,
        impl=_impl(spec.impl, gpu),
        dtype="fp32" if gpu.dtype == "tf32" else gpu.dtype,  # of a CPU; the same operators
        batch_size=spec.batch_size or DEFAULT_BATCH_SIZE["cpu" if own else "cuda"],
    )
    activate(TARGETS[gpu.target])
    return _on_this_cpu(spec) if own else _without_numbers(spec)


def _impl(impl: str, gpu: Gpu) -> str:
    if gpu.runs_kernels:
        return impl
    if "triton" in impl:
        raise BadInput(f"--impl {impl}: kernels need an sm_80 or later, and {gpu.name} is none; use --impl reference")
    return "reference" if impl == "auto" else impl


def _on_this_cpu(spec: WorkloadSpec) -> tuple[Workload, Count, MemoryPeak]:
    workload = prepare(spec)
    with recorded(lambda launch: None), GpuAutocast():
        first_step(workload)
        return workload, count_of(workload, 0), memory_of(workload)


def _without_numbers(spec: WorkloadSpec) -> tuple[Workload, Count, MemoryPeak]:
    building = FakeTensorMode(allow_non_fake_inputs=True)
    with compile_ahead(lambda compiled: None, lambda kernel, key: "none"):
        workload = prepare(spec, building=building)
        with without_numbers(building):
            _step(workload, 0)  # optimizers make their state
            return workload, count_of(workload, 0, _step), memory_of(workload, _step)


def _step(workload: Workload, index: int, *, phase: Phase = unmarked) -> None:
    """A step without numbers: an update that depends on them, as that of a large table's rows, is left out."""
    run_passes(workload, workload.inputs[index], phase=phase)
    with phase(OPTIMIZER):
        for optimizer in workload.optimizers:
            with suppress(DataDependentOutputException):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _notes(workload: Workload) -> list[str]:
    notes = []
    if workload.needed is None:
        notes.append("its operators are those of this CPU, where a GPU may have others")
    if any(isinstance(optimizer, torch.optim.Adagrad) for optimizer in workload.optimizers):
        notes.append("the bytes that updating the rows of large tables moves are not known without their numbers")
    return notes
