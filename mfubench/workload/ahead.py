"""A step where its GPU is not: the launches of a workload on a GPU, without the numbers that they would compute."""

import warnings
from dataclasses import replace

from torch._subclasses.fake_tensor import FakeTensorMode

from .prepare import DEFAULT_BATCH_SIZE, prepare
from .spec import WorkloadSpec
from .step import run_passes, run_step


def step_without_numbers(spec: WorkloadSpec) -> None:
    """Run the passes of a step as on a GPU, on each of its input sets: on one, where ``spec.steps`` is 1.

    What ``spec`` leaves to its device is what it would be there, and nothing is compiled as a whole. A model of the zoo
    runs on tensors without numbers, whose lengths are those on a GPU. A user's own may ask for numbers, so it runs on a
    CPU with its optimizers, and in batches as large as there by default; what kernels that are compiled in place of
    being launched would have written is then whatever was in that memory.

    Raises:
        BadInput: what `prepare` refuses.
    """
    spec = replace(spec, device="cpu", compile="none", dtype=spec.dtype or "bf16")
    if ":" in spec.model:
        workload = prepare(spec)
        for index in range(len(workload.inputs)):
            run_step(workload, index)
        return
    without_numbers = FakeTensorMode(allow_non_fake_inputs=True)
    spec = replace(spec, batch_size=spec.batch_size or DEFAULT_BATCH_SIZE["cuda"])
    workload = prepare(spec, building=without_numbers)
    with without_numbers, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        for batch in workload.inputs:
            run_passes(workload, batch)
