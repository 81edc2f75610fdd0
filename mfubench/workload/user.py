"""The user's own model: ``package.module:build``; ``build()`` gives ``(module, make_batch[, loss[, optimizers]])``.

A loader may stand in make_batch's place.
"""

import hashlib
import inspect
import random
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from mfu_kernels.precision import widened
from mfubench.errors import BadInput, OutOfMemory
from mfubench.exhausted import out_of_memory
from mfubench.identity import digest
from mfubench.measure.compiled import compiler_loaded
from mfubench.measure.operators import dense_parts, tensors_of
from mfubench.measure.precision import rounds_factors
from mfubench.ranks import joined
from mfubench.user_code import kind_of, located, named_function, short

from .batches import loaded, made_by, shapes_of
from .description import code_of, describe
from .loader import Loader
from .spec import NUM_ROTATED, Workload, WorkloadSpec
from .step import listed_optimizers, make_optimizers

OWN_IMPLS = ("auto", "reference")  # the commands' defaults, which ask nothing of a model
MAX_NUMPY_SEED = 2**32
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object without a repr of its own, another in each process
RANKS_APART = 1_000_003  # seeds: each rank has batches of its own
SIGNATURE = "build() must return (module, make_batch), with a loss and optimizers behind them if it has its own"


def prepare_user(spec: WorkloadSpec, device: torch.device, dtype: str, default_batch_size: int) -> Workload:
    """The workload of ``spec.model``, ``package.module:function``, imported with the working directory on the path.

    Raises:
        BadInput: it does not import, has another signature, raises, or gives what is no model, batch or optimizer.
    """
    _refuse_zoo_options(spec)
    _seed(spec.seed)
    return workload_of(spec, _build(spec.model), device, dtype, default_batch_size)


def workload_of(
    spec: WorkloadSpec, own: "OwnModel", device: torch.device, dtype: str, default_batch_size: int
) -> Workload:
    """The workload of ``own``, which ``spec.model`` is called.

    Raises:
        BadInput: it does not run on ``device``, or gives what is no batch or optimizer.
    """
    module, make_batch, loss, optimizers = own
    ranks = joined()
    may_be_compiled = compiler_loaded()  # before anything else, such as an optimizer, loads it
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise BadInput(f"{spec.model}: a lazy module has no shape yet; run the model once in build()")
    module = _moved(spec.model, module, device)
    told = _in_mode(spec, module) + _of_rounding(device, dtype)
    _seed((spec.seed ^ 1) + RANKS_APART * ranks.rank)  # whatever the model has drawn, and not what it has drawn
    num_sets = min(spec.steps, NUM_ROTATED)
    batches = (
        made_by(make_batch, spec.batch_size or default_batch_size, device, num_sets)
        if callable(make_batch)
        else loaded(Loader(spec.model, make_batch), spec.batch_size, device, num_sets)
    )
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    description = describe(
        spec, module, device, dtype, size=None, batch_size=batches.size, data=batches.described,
        model_id=f"{ADDRESS.sub('', repr(module))} {shapes}",
    )  # fmt: skip
    description |= code_of(spec.model)
    description["data_hash"] = digest(batches.size, [_work_of(batch) for batch in batches.inputs])
    return Workload(
        spec=spec,
        description=description,
        device=device,
        dtype=dtype,
        module=module,
        inputs=batches.inputs,
        num_samples=batches.num_samples,
        forward=_call,
        loss=loss,
        to_device=batches.to_device,
        optimizers=_optimizers(spec.model, optimizers, module) if spec.mode == "train" else [],
        may_be_compiled=may_be_compiled,
        ranks=ranks,
        loader=batches.loader,
        warnings=told + batches.warnings,
    )


def _seed(seed: int) -> None:
    """Seed whatever a user's model and batches may be drawn from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % MAX_NUMPY_SEED)


def _moved(name: str, module: nn.Module, device: torch.device) -> nn.Module:
    try:
        return module.to(device)
    except Exception as error:
        exhausted = out_of_memory(error, device)
        if exhausted:
            raise OutOfMemory(f"{name}: its module does not fit {device}: {exhausted}") from error
        raise BadInput(f"{name}: its module cannot be moved to {device}: {located(error)}") from error


def _in_mode(spec: WorkloadSpec, module: nn.Module) -> list[str]:
    """Put ``module`` into the mode that ``spec`` asks for; a warning where it has one alone, as exported ones have."""
    try:
        module.train(spec.mode == "train")
    except Exception as error:
        if spec.mode == "train":
            raise BadInput(f"{spec.model}: its train() raised {located(error)}; use --mode infer") from error
        return [f"its eval() raised {located(error)}: it runs as build() left it"]
    return []


def _of_rounding(device: torch.device, dtype: str) -> list[str]:
    """A warning where the process's fp32 products would round their factors, and those of the run do not."""
    if dtype != "fp32" or not rounds_factors(device):
        return []
    instead = "; --dtype tf32 measures it so" if device.type == "cuda" else ""
    return [
        "fp32 products were let round their factors (torch.set_float32_matmul_precision, or allow_tf32), and with "
        f"--dtype fp32 they do not{instead}"
    ]


def _refuse_zoo_options(spec: WorkloadSpec) -> None:
    given = {
        "--size": spec.size,
        "--set": spec.overrides,
        "--candidates": spec.candidates,
        "--data": spec.data if spec.data != "synthetic" else None,
    }
    wrong = [option for option, value in given.items() if value]
    if wrong:
        raise BadInput(f"{', '.join(wrong)} belongs to the zoo's models; {spec.model} makes its own model and batches")
    if spec.impl not in OWN_IMPLS:
        raise BadInput(
            f"--impl {spec.impl} belongs to the zoo's models: {spec.model} would run as it does without, under another "
            "name. It chooses itself where it calls an op of mfu_kernels; `mfubench optimize` swaps kernels in"
        )


class OwnModel(NamedTuple):
    """What ``build()`` gave, with defaults for what it left out; ``make_batch`` may be a loader."""

    module: nn.Module
    make_batch: Any
    loss: Callable[[Any, Any], torch.Tensor]
    optimizers: Callable[[nn.Module], Any]


def _build(name: str) -> OwnModel:
    build = named_function(name, SIGNATURE, "build")
    _require_signature(name, build, 0, "build()")
    try:
        built = build()
    except (Exception, SystemExit) as error:
        raise BadInput(f"{name} raised {located(error)}") from error
    if not isinstance(built, tuple) or len(built) not in (2, 3, 4) or not isinstance(built[0], nn.Module):
        raise BadInput(f"{name} returned {kind_of(built)}; {SIGNATURE}")
    return own_model(name, *built)


def own_model(name: str, *built: Any) -> OwnModel:
    """``built`` as ``build()`` may give it, a module first, with defaults for what is left out or None.

    Raises:
        BadInput: another part of it is not what it should be.
    """
    defaults = (None, None, default_loss, make_optimizers)
    given: tuple[Any, ...] = (*built, *defaults[len(built) :])
    model = OwnModel(*(default if value is None else value for value, default in zip(given, defaults, strict=True)))  # type: ignore[arg-type]
    for function, arguments in _CALLED_WITH.items():
        value, wanted = getattr(model, function), f"{function}({', '.join(arguments)})"
        if function == "make_batch" and not callable(value) and isinstance(value, Iterable) and not _is_batch(value):
            continue
        if not callable(value):
            or_else = ", or a loader: an iterable of batches, such as [batch]" if function == "make_batch" else ""
            raise BadInput(f"{name}: {function} is {kind_of(value)}; it must be callable as {wanted}{or_else}")
        _require_signature(name, value, len(arguments), wanted)
    return model


def _is_batch(value: Any) -> bool:
    """Whether it is one batch in the place of what makes them."""
    return isinstance(value, (torch.Tensor, str, Mapping)) or (
        isinstance(value, tuple) and any(isinstance(part, torch.Tensor) for part in value)
    )


_CALLED_WITH = {"make_batch": ("batch_size", "device"), "loss": ("output", "batch"), "optimizers": ("module",)}


def _optimizers(name: str, function: Callable[[nn.Module], Any], module: nn.Module) -> list[torch.optim.Optimizer]:
    """What the user's function made of the module that is on its device now: one optimizer, or several."""
    try:
        made = function(module)
    except (Exception, SystemExit) as error:
        raise BadInput(f"{name}: optimizers(module) raised {located(error)}") from error
    listed = listed_optimizers(made)
    if listed is None:
        raise BadInput(f"{name}: optimizers(module) returned {kind_of(made)}; a torch optimizer or a list is needed")
    for item in listed:
        _refuse_closure(name, item)
    return listed


def _refuse_closure(name: str, optimizer: torch.optim.Optimizer) -> None:
    """One that runs the model itself, as often as it likes, has no step of one forward and one backward."""
    try:
        inspect.signature(type(optimizer).step).bind(optimizer)  # a scheduler puts another around the instance's
    except TypeError:
        kind = type(optimizer).__name__
        raise BadInput(
            f"{name}: {kind}.step() needs a closure, with which it runs the model as often as it likes; a step is one "
            "forward and one backward here. Return an optimizer whose step() needs none, such as torch.optim.AdamW: "
            "the model's part of a step is the same; or use --mode infer"
        ) from None


def _require_signature(name: str, function: Callable[..., Any], arity: int, wanted: str) -> None:
    try:
        inspect.signature(function).bind(*range(arity))
    except TypeError as error:
        raise BadInput(f"{name}: it must be callable as {wanted}; {short(error)}") from None
    except ValueError:
        return  # a builtin without a signature: calling it will tell


def _call(module: Callable[..., Any], batch: Any) -> Any:
    return module(**batch) if isinstance(batch, Mapping) else module(*batch)


def default_loss(output: Any, _batch: Any) -> torch.Tensor:
    """Sum, over the floating-point tensors found anywhere in ``output``, of their means.

    Raises:
        BadInput: there is none that a gradient could flow from.
    """
    found = [tensor for tensor in tensors_of(output) if tensor.is_floating_point() and tensor.requires_grad]
    if not found:
        raise BadInput(
            f"the model's output ({kind_of(output)}) holds no tensor to differentiate; use --mode infer, or a loss"
        )
    return torch.stack([widened(tensor).mean() for tensor in found]).sum()


def _work_of(batch: Any) -> list[str]:
    """What decides how much work a batch is, on whatever model: shapes, and numbers that are lengths, ids or masks."""
    told = [repr(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, (bool, int, str))]
    for tensor in tensors_of(batch):
        parts = _parts(tensor)
        told += shapes_of(parts if tensor.is_nested else [tensor, *parts])
        told += [_digest_of(part) for part in parts if not (part.is_floating_point() or part.is_complex())]
    return told


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if not tensor.is_nested:
        return dense_parts(tensor)
    return [tensor.values(), tensor.offsets()] if tensor.layout == torch.jagged else list(tensor.unbind())  # type: ignore[attr-defined]


def _digest_of(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
