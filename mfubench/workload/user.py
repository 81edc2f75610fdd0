"""The user's own model: ``package.module:build``, where ``build()`` gives ``(module, make_batch[, loss])``."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from mfubench.errors import BadInput
from mfubench.measure.compiled import compiler_loaded

from .prepare import describe, digest
from .spec import NUM_ROTATED, Workload, WorkloadSpec
from .step import make_optimizers

SIGNATURE = "build() must return (module, make_batch) or (module, make_batch, loss)"


def prepare_user(spec: WorkloadSpec, device: torch.device, dtype: str, batch_size: int) -> Workload:
    """The workload of ``spec.model``, ``package.module:function``, imported with the working directory on the path.

    Raises:
        BadInput: it does not import, has another signature, raises, or gives what is no model or no batch.
    """
    _refuse_zoo_options(spec)
    torch.manual_seed(spec.seed)
    module, make_batch, loss = _build(spec.model)
    may_be_compiled = compiler_loaded()  # before anything else, such as an optimizer, loads it
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise BadInput(f"{spec.model}: a lazy module has no shape yet; run the model once in build()")
    module = module.to(device)
    module.train(spec.mode == "train")
    inputs = [_inputs(make_batch, batch_size, device) for _ in range(min(spec.steps, NUM_ROTATED))]
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    description = describe(
        spec, module, device, dtype, size=None, batch_size=batch_size, data="the model's own make_batch",
        model_id=f"{module!r} {shapes}",
    )  # fmt: skip
    description["data_hash"] = digest(spec.model, spec.seed, batch_size, [_shapes(batch) for batch in inputs])
    return Workload(
        spec=spec,
        description=description,
        device=device,
        dtype=dtype,
        module=module,
        inputs=inputs,
        num_samples=[batch_size] * len(inputs),
        forward=_call,
        loss=loss,
        to_device=lambda batch: batch,
        optimizers=make_optimizers(module) if spec.mode == "train" else [],
        may_be_compiled=may_be_compiled,
    )


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


def _build(name: str) -> tuple[nn.Module, Callable[..., Any], Callable[[Any, Any], torch.Tensor]]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise BadInput(f"{name!r} names no function; give package.module:build")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        imported = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise BadInput(f"cannot import {module_name}: {short(error)}; it is looked for from {Path.cwd()}") from error
    function = getattr(imported, attribute, None)
    if not callable(function):
        raise BadInput(f"{module_name} has no function {attribute!r}; {SIGNATURE}")
    _require_signature(name, function, 0, "build()")
    try:
        built = function()
    except Exception as error:
        raise BadInput(f"{name} raised {short(error)}") from error
    if not isinstance(built, tuple) or len(built) not in (2, 3) or not isinstance(built[0], nn.Module):
        raise BadInput(f"{name} returned {_kind(built)}; {SIGNATURE}")
    module, make_batch, *rest = built
    for what, value, arity in (("make_batch", make_batch, 2), ("loss", rest[0] if rest else default_loss, 2)):
        if not callable(value):
            raise BadInput(f"{name}: {what} is {_kind(value)}; it must be a function of two arguments")
        _require_signature(
            name, value, arity, f"{what}({'batch_size, device' if what == 'make_batch' else 'output, batch'})"
        )
    return module, make_batch, rest[0] if rest else default_loss


def _require_signature(name: str, function: Callable[..., Any], arity: int, wanted: str) -> None:
    try:
        inspect.signature(function).bind(*range(arity))
    except TypeError as error:
        raise BadInput(f"{name}: it must be callable as {wanted}; {short(error)}") from None
    except ValueError:
        return  # a builtin without a signature: calling it will tell


def _inputs(make_batch: Callable[..., Any], batch_size: int, device: torch.device) -> Any:
    try:
        batch = make_batch(batch_size, device)
    except Exception as error:
        raise BadInput(f"make_batch({batch_size}, {device}) raised {short(error)}") from error
    if not isinstance(batch, (tuple, Mapping)):
        raise BadInput(
            f"make_batch returned {_kind(batch)}; a tuple of positional or a dict of keyword arguments is needed"
        )
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, batch)


def _call(module: nn.Module, batch: Any) -> Any:
    return module(**batch) if isinstance(batch, Mapping) else module(*batch)


def default_loss(output: Any, _batch: Any) -> torch.Tensor:
    """Sum, over the floating-point tensors found anywhere in ``output``, of their means.

    Raises:
        BadInput: there is none that a gradient could flow from.
    """
    found = [tensor for tensor in _tensors(output) if tensor.is_floating_point() and tensor.requires_grad]
    if not found:
        raise BadInput(
            f"the model's output ({_kind(output)}) holds no tensor to differentiate; use --mode infer, or a loss"
        )
    return torch.stack([tensor.float().mean() for tensor in found]).sum()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _tensors(leaf)


def _shapes(batch: Any) -> list[str]:
    return [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in _tensors(batch)]


def short(error: BaseException) -> str:
    """An error in a few words."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
