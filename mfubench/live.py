"""Profile a model that a script or a notebook holds and goes on with."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .cli.folders import own_folder
from .errors import BadInput, OutOfMemory
from .exhausted import free_host_memory
from .measure.operators import tensors_of
from .profiling import profile_workload
from .progress import Progress, silent
from .ranks import of_another_rank
from .report import write_reports
from .report.terminal import print_runs, stdout_console
from .run import Run, write_run
from .user_code import kind_of
from .workload.kept import buffers_kept, chance_kept, changed_by, kept
from .workload.prepare import DEFAULT_BATCH_SIZE, device_and_dtype
from .workload.spec import WorkloadSpec
from .workload.step import listed_optimizers
from .workload.user import own_model, workload_of

HOST = torch.device("cpu")


def profile(
    model: nn.Module,
    batches: Any,
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    mode: str = "train",
    dtype: str | None = None,
    compile: str = "none",
    steps: int = 20,
    peak: str | None = None,
    out: Path | str | None = None,
    progress: Progress = silent,
) -> Run:
    """How much of its device ``model`` uses, and where the rest goes, as ``mfubench profile`` finds it.

    ``batches`` is a loader, such as a DataLoader or ``[batch]``; ``loss`` and the options are as of that command and
    the ``build()`` that it takes. With ``out`` the Run and its reports are written there. It runs where the model's
    parameters are. Afterwards these, buffers, gradients, the optimizers' states, modes and random generators are what
    they were: until then there are copies in the host's memory. What else a step changes, such as plain attributes,
    stays changed, and what torch.compile has compiled is compiled again.

    Raises:
        BadInput: what is given does not run, as for a model of the command.
    """
    device = _device_of(model)
    spec = WorkloadSpec(
        _name_of(model), mode=mode, dtype=dtype, compile=compile, steps=steps, peak=peak, device=device.type
    )
    given = listed_optimizers(optimizers or [])
    if given is None:
        raise BadInput(f"profile: optimizers is {kind_of(optimizers)}; allowed: a torch optimizer, or a list of them")
    own = own_model(spec.model, model, batches, loss, (lambda module: given) if given else None)
    folder = None if out is None or of_another_rank() else Path(out)
    own_folder(folder, "profile")
    at, dtype = device_and_dtype(spec)
    with _left_as_it_was(model, given, mode), _loader_kept(batches):
        run = profile_workload(workload_of(spec, own, at, dtype, DEFAULT_BATCH_SIZE[at.type]), progress=progress)
    run.environment["command"] = f"mfubench.profile in {Path(sys.argv[0]).name or 'Python'}"
    if folder is not None:
        write_run(run, folder)
        write_reports([run], folder)
    return run


def show(run: Run, *, full: bool = False) -> None:
    """Print the report of ``run`` as ``mfubench profile`` does, ``full`` as its ``--verbose``."""
    print_runs([run], stdout_console(), full=full)


def _name_of(model: nn.Module) -> str:
    """The class of ``model``, or of what torch has wrapped in another, for compiling it or for several ranks."""
    while isinstance(inner := getattr(model, "_orig_mod", None) or _in_parallel(model), nn.Module):
        model = inner
    return f"{type(model).__module__}:{type(model).__qualname__}"


def _in_parallel(model: nn.Module) -> Any:
    return getattr(model, "module", None) if type(model).__module__.startswith("torch.nn.parallel") else None


def _device_of(model: Any) -> torch.device:
    """The device that the whole ``model`` is on; a CUDA device is the current one, on which steps run."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"profile: the model is {kind_of(model)}; allowed: a torch.nn.Module")
    devices = {tensor.device for tensor in chain(model.parameters(), model.buffers())} or {HOST}
    if len(devices) > 1:
        raise BadInput(f"profile: the model is on {', '.join(sorted(map(str, devices)))}; it must be on one device")
    (device,) = devices
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise BadInput(f"profile: the model is on {device}; call torch.cuda.set_device({device.index}) before")
    return device


@contextmanager
def _left_as_it_was(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], mode: str) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    parameters = changed_by(model, optimizers)
    gradients = [parameter.grad for parameter in parameters]
    unchanged = buffers_kept(model, device=HOST) if mode == "infer" else _kept_on_host(model, optimizers)
    for parameter in parameters:  # a backward would add to it
        parameter.grad = None
    try:
        with chance_kept(), unchanged:
            try:
                yield
            finally:
                with suppress(Exception):  # as an exported module raises
                    model.train(modes[0][1])  # which some do work in, such as merging weights
    finally:
        for module, training in modes:
            module.training = training
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


@contextmanager
def _loader_kept(loader: Any) -> Iterator[None]:
    """Afterwards a DataLoader goes on where it was, also within the script's loop over it."""
    places = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = [found for place in places if isinstance(found := getattr(place, "generator", None), torch.Generator)]
    drawn = [generator.get_state() for generator in generators]
    running = getattr(loader, "_iterator", None)  # of workers that persist, which another loop would begin anew
    if running is not None:
        loader._iterator = None
    try:
        yield
    finally:
        if running is not None:
            loader._iterator = running
        for generator, state in zip(generators, drawn, strict=True):
            generator.set_state(state)


def _kept_on_host(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> AbstractContextManager[None]:
    states = (optimizer.state for optimizer in optimizers)
    needed = sum(tensor.nbytes for tensor in tensors_of([changed_by(model, optimizers), *states]))
    free = free_host_memory()
    if free is not None and needed > free:
        raise OutOfMemory(
            f"profile: copies of the model and its optimizers need {needed / 2**30:.1f} GiB of this machine's memory, "
            f"and {free / 2**30:.1f} GiB are free; profile it with the command, which builds a model of its own"
        )
    return kept(model, optimizers, device=HOST)
