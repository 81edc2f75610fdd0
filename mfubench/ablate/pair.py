"""Two workloads held at once and timed in turn, so that drift of the machine is in both and not in their ratio."""

from collections.abc import Callable

import torch

from mfubench.data import Source
from mfubench.measure.timing import time_in_turn
from mfubench.profiling import timed_module
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WARMUP_STEPS, Workload, WorkloadSpec
from mfubench.workload.step import run_step


def time_pair(
    before: WorkloadSpec, after: WorkloadSpec, source: Source, progress: Callable[[int], None]
) -> tuple[list[float], list[float]]:
    """Milliseconds of ``spec.steps`` steps of each, in turn, as the workloads ask to be compiled.

    Raises:
        OutOfMemory, torch.OutOfMemoryError: the device does not hold both.
    """
    forget_compiled(before)
    workloads = [prepare(spec, source) for spec in (before, after)]
    first, second = time_in_turn(
        [_step(workload) for workload in workloads],
        device=workloads[0].device,
        num_rounds=before.steps,
        warmup=max(WARMUP_STEPS, len(workloads[0].inputs)),  # so that each input set has been compiled for
        progress=progress,
    )
    return first, second


def forget_compiled(spec: WorkloadSpec) -> None:
    """Drop earlier workloads' compiled code, which counts against a limit beyond which dynamo runs eagerly instead."""
    if spec.compile != "none":
        torch.compiler.reset()


def _step(workload: Workload) -> Callable[[int], None]:
    module = timed_module(workload)
    return lambda index: run_step(workload, index, module=module)
