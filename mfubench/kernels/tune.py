"""Find a kernel's best config by trying its space, and write down what won, where and how fast.

Configs that do not compile, do not fit or spill are left out before anything is timed. Each kernel is varied alone,
inside the op's forward or backward that launches it, in turns with the others.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mfu_kernels.examples import Draw, Examples
from mfu_kernels.lock import FILE_NAME, SCHEMA_VERSION, adopt, key_text, locked_config, with_entries
from mfu_kernels.modes import Compiled, MetaParameters, compile_ahead, forced_config
from mfubench.errors import BadInput
from mfubench.measure.environment import now
from mfubench.run import write_text

from .machine_code import spill_bytes, toolchain
from .targets import TARGETS, Target
from .timing import time_in_turns

ROUNDS = 5
TimeInTurns = Callable[..., dict[str, list[float]]]


Wanted = Callable[[str, MetaParameters], bool]
"""Whether a kernel is to be tuned, by its name and key."""


@dataclass(slots=True)
class Launched:
    """One kernel at one key: the configs that may win, and in which direction it runs."""

    kernel: str
    key: Any
    direction: str
    configs: list[Any] = field(default_factory=list)


def device_target(device: torch.device) -> Target:
    """The target whose limits hold on ``device``.

    Raises:
        BadInput: no GPU, or a generation without a row in `targets`.
    """
    if device.type != "cuda":
        raise BadInput("configs are tuned on a GPU only; here is none")
    name = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    if name not in TARGETS:
        raise BadInput(f"{name} has no row in mfubench/kernels/targets.py; it has: {', '.join(TARGETS)}")
    return TARGETS[name]


def launched_kernels(
    examples: Examples, shape: str, target: Target, wanted: Wanted = lambda kernel, key: True
) -> list[Launched]:
    """The ``wanted`` kernels that the op launches at ``shape``, with the configs that compile, fit and do not spill."""
    found: dict[tuple[str, str], Launched] = {}
    direction = "forward"

    def keep(compiled: Compiled) -> None:
        if not wanted(compiled.kernel, compiled.key):
            return
        place = found.setdefault(
            (compiled.kernel, key_text(compiled.key)), Launched(compiled.kernel, compiled.key, direction)
        )
        if isinstance(compiled.result, Exception) or compiled.result.metadata.shared > target.block_shared:
            return
        if not _spills(compiled.result, target):
            place.configs.append(compiled.config)

    inputs = examples.make(examples.shapes[shape], Draw(torch.bfloat16, torch.device("meta")))
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}
    with compile_ahead(keep, lambda kernel, key: "all" if wanted(kernel, key) else "launched"):
        out = examples.function(**leaves, **inputs.others, impl="triton")
        direction = "backward"
        out.backward(torch.empty_like(out))
    return list(found.values())


def _spills(compiled: Any, target: Target) -> bool:
    """Whether the code spills; the driver, which is asked first and sooner answers, counts arrays of a thread, too."""
    assert compiled.run  # which loads the code
    return bool(compiled.n_spills) and spill_bytes(compiled, target) > 0


def not_locked(device_name: str) -> Wanted:
    """Wants the kernels that have no locked config for the GPU of this name."""
    return lambda kernel, key: locked_config(kernel, device_name, key) is None


def tune_op(
    examples: Examples,
    device: torch.device,
    *,
    shapes: Sequence[str],
    again: bool = True,
    time: TimeInTurns = time_in_turns,
    progress: Callable[[str, float], None] = lambda stage, done: None,
) -> list[dict[str, Any]]:
    """Time the space of every kernel at ``shapes`` and adopt the winners; gives the entries to lock.

    ``again``: also of kernels that have a locked config for this GPU, other than one that was just won.
    """
    target, device_name = device_target(device), torch.cuda.get_device_name(device)
    won: list[dict[str, Any]] = []

    def wanted(kernel: str, key: MetaParameters) -> bool:
        tuned = any((entry["kernel"], entry["key"]) == (kernel, key_text(key)) for entry in won)
        return not tuned and (again or not_locked(device_name)(kernel, key))

    for index, shape in enumerate(shapes):
        progress(f"tuning {examples.function.__name__} at {shape}", index / len(shapes))
        for launched in launched_kernels(examples, shape, target, wanted):
            if launched.configs:
                won.append(_tune_kernel(examples, shape, launched, device, device_name, time))
                adopt(won[-1:])
    return won


def _tune_kernel(
    examples: Examples, shape: str, launched: Launched, device: torch.device, device_name: str, time: TimeInTurns
) -> dict[str, Any]:
    inputs = examples.make(examples.shapes[shape], Draw(torch.bfloat16, device, on_device=True))
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}

    def forward() -> torch.Tensor:
        return examples.function(**leaves, **inputs.others, impl="triton")

    out = forward()
    weights = torch.randn_like(out)

    def backward() -> object:
        return torch.autograd.grad(out, list(leaves.values()), weights, retain_graph=True)

    run = forward if launched.direction == "forward" else backward

    def with_config(config: Any) -> Callable[[], object]:
        def call() -> object:
            with forced_config(lambda kernel, _: config if kernel == launched.kernel else None):
                return run()

        return call

    samples = time({str(at): with_config(config) for at, config in enumerate(launched.configs)}, rounds=ROUNDS)
    ms = {at: median(values) for at, values in samples.items()}
    best = min(ms, key=lambda at: ms[at])
    config = launched.configs[int(best)]
    return {
        "kernel": launched.kernel,
        "device": device_name,
        "key": key_text(launched.key),
        "config": {**config.kwargs, "num_warps": config.num_warps, "num_stages": config.num_stages},
        "shape": shape,
        "measured": f"the op's {launched.direction} with this kernel's config alone varied",
        "ms": ms[best],
        "ms_of_default": ms["0"],
        "configs_timed": len(ms),
        "ms_by_config": {_spelled(launched.configs[int(at)]): ms[at] for at in ms},
        "date": now(),
        "toolchain": toolchain(),
    }


def _spelled(config: Any) -> str:
    return key_text({**config.kwargs, "num_warps": config.num_warps, "num_stages": config.num_stages})


def write_lock(entries: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the committed lock with ``entries`` in their places to ``folder``, in the form of the committed file."""
    lock = {"schema_version": SCHEMA_VERSION, "entries": with_entries(entries)}
    write_text(folder / FILE_NAME, json.dumps(lock, indent=1) + "\n")
