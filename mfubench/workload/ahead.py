"""A step where its GPU is not: the launches of a workload on a GPU, without the numbers that they would compute."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from mfubench.measure.operators import tensors_of

from .autocast import GpuAutocast
from .prepare import DEFAULT_BATCH_SIZE, prepare
from .spec import WorkloadSpec
from .step import run_passes, run_step


def step_without_numbers(
    spec: WorkloadSpec, inside: Callable[[nn.Module], AbstractContextManager[Any]] = lambda module: nullcontext()
) -> None:
    """Run the passes of a step as on a GPU, on each of its input sets: on one, where ``spec.steps`` is 1.

    What ``spec`` leaves to its device is what it would be there, and autocast is a GPU's; nothing is compiled whole. A
    model of the zoo runs on tensors without numbers but whole ones: lengths, offsets and ids are those on a GPU. A
    user's own may ask for numbers, so it runs on a CPU with its optimizers, and in batches as large as there by
    default; what kernels that are compiled in place of being launched would have written is then whatever was in that
    memory. The passes run inside the context that ``inside`` makes of the module.

    Raises:
        BadInput: what `prepare` refuses.
    """
    spec = replace(spec, device="cpu", compile="none", dtype=spec.dtype or "bf16")
    if ":" in spec.model:
        workload = prepare(spec)
        with GpuAutocast(), inside(workload.module):
            for index in range(len(workload.inputs)):
                run_step(workload, index)
        return
    building = FakeTensorMode(allow_non_fake_inputs=True)
    spec = replace(spec, batch_size=spec.batch_size or DEFAULT_BATCH_SIZE["cuda"])
    workload = prepare(spec, building=without_numbers(building))
    with without_numbers(building), inside(workload.module):
        for batch in workload.inputs:
            run_passes(workload, batch)


class _WholeNumbers(TorchDispatchMode):
    """Computes what is made of whole numbers alone, such as offsets and lookups: what is counted depends on them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_of((args, kwargs))
        if all(_is_whole(tensor) for tensor in given) and (given or _makes_whole_numbers(func, kwargs)):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _is_whole(tensor: torch.Tensor) -> bool:
    return not (isinstance(tensor, FakeTensor) or tensor.is_floating_point())


def _makes_whole_numbers(func: Any, kwargs: dict[str, Any]) -> bool:
    dtype = kwargs.get("dtype")
    return func._overloadpacket is torch.ops.aten.arange if dtype is None else not dtype.is_floating_point


@contextmanager
def without_numbers(building: FakeTensorMode) -> Iterator[None]:
    """Inside, tensors of whole numbers have them and others none, like those of a module built in ``building``.

    Autocast is a GPU's.
    """
    with building, _WholeNumbers(), GpuAutocast(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield
