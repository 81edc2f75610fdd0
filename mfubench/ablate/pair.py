"""Two workloads held at once and timed in turn, so that drift of the machine is in both and not in their ratio."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch

from mfubench.data import Source
from mfubench.measure.timing import time_in_turn
from mfubench.workload.compilation import compiled_in_place, settling_steps
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WARMUP_STEPS, WorkloadSpec
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
    with ExitStack() as stack:
        for workload in workloads:
            stack.enter_context(compiled_in_place(workload))
        first, second = time_in_turn(
            [partial(run_step, workload) for workload in workloads],
            device=workloads[0].device,
            num_rounds=before.steps,
            warmup=max(WARMUP_STEPS, *map(settling_steps, workloads)),
            progress=progress,
        )
    return first, second


def forget_compiled(spec: WorkloadSpec) -> None:
    """Drop earlier workloads' compiled code, which counts against a limit beyond which dynamo runs eagerly instead."""
    if spec.compile != "none":
        torch.compiler.reset()
