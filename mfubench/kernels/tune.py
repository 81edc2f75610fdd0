"""Find a kernel's best config by trying its space, and write down what won, where and how fast.

Configs that do not compile or fit are left out before anything is run, and those that do not compute what a proved one
does before anything is timed. Spills are for the clock to judge: on an H200 some of the fastest configs had a few.
Each kernel is varied alone, inside the op's forward or backward that launches it, in turns with the others. The
fastest of many is the luckiest too, so that it is timed anew beside what launches take now: it has to be faster there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mfu_kernels.examples import Draw, Examples
from mfu_kernels.lock import (
    Entry,
    adopt,
    as_locked,
    entries_of,
    key_text,
    locked_config,
    spelled,
)
from mfu_kernels.modes import Compiled, MetaParameters, compile_ahead, forced_config
from mfubench.errors import BadInput, ToolBroke
from mfubench.measure.environment import now
from mfubench.measure.stats import bootstrap_median
from mfubench.measure.timing import wait_for
from mfubench.user_code import short
from mfubench.worker import UNWATCHED, PartBroke, Watch

from .ahead import call_both_ways, outputs_of
from .budget import DISAGREES, difference
from .check import poisoned_memory
from .machine_code import toolchain
from .targets import TARGETS, Target
from .timing import time_in_turns

ROUNDS = 5  # of all configs
CONFIRMING = 9  # of the fastest beside what launches take now: 95 % is then all but one round on one side

ToTune = Callable[[str, MetaParameters], bool]
"""Whether a kernel is to be tuned, by its name and key."""


@dataclass(slots=True)
class Candidates:
    """One kernel at one key: the configs that may win, in which direction it runs, and what is left out and why."""

    kernel: str
    key: Any
    direction: str
    configs: list[Any] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def part(self, config: Any) -> str:
        """What this kernel with ``config`` is called."""
        return f"{self.kernel} {spelled(config)}"

    @property
    def instead_of(self) -> str:
        """What does the kernel's work until a config of its own has won."""
        from mfu_kernels.launching import KERNELS

        return KERNELS[self.kernel].instead_of

    @property
    def default(self) -> Any:
        """The config that a launch takes where none is locked."""
        from mfu_kernels.launching import KERNELS

        return KERNELS[self.kernel].space(self.key)[0]

    def locked(self, gpu: "Gpu") -> Any:
        """The config that is locked for the GPU, or for another of its generation, or None."""
        from mfu_kernels.launching import config

        found = locked_config(self.kernel, gpu.name, gpu.target.name, self.key)
        return None if found is None else config(**found.config)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that is tuned for, by the name that its entries are locked under."""

    device: torch.device
    name: str
    target: Target

    @classmethod
    def of(cls, device: torch.device) -> "Gpu":
        """The one at ``device``.

        Raises:
            BadInput: as `device_target`.
        """
        target = device_target(device)
        return cls(device, torch.cuda.get_device_name(device), target)


class _NoneFits(Exception):
    """No config of a kernel can be timed; its `Candidates` says why."""


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


def candidates_of(
    examples: Examples, shape: str, target: Target, wanted: ToTune = lambda kernel, key: True
) -> list[Candidates]:
    """The ``wanted`` kernels that the op launches at ``shape``, with the configs that compile and fit."""
    found: dict[tuple[str, str], Candidates] = {}
    direction = "forward"

    def keep(compiled: Compiled) -> None:
        if not wanted(compiled.kernel, compiled.key):
            return
        place = found.setdefault(
            (compiled.kernel, key_text(compiled.key)), Candidates(compiled.kernel, compiled.key, direction)
        )
        why = _unfit(compiled.result, target)
        if why is None:
            place.configs.append(compiled.config)
        else:
            place.left_out[spelled(compiled.config)] = why

    def turn() -> None:
        nonlocal direction
        direction = "backward"

    inputs = examples.make(examples.shapes[shape], Draw(torch.bfloat16, torch.device("meta")))
    with compile_ahead(keep, lambda kernel, key: "all" if wanted(kernel, key) else "launched"):
        call_both_ways(examples, inputs, turn)
    return list(found.values())


def _unfit(compiled: Any, target: Target) -> str | None:
    """Why a compiled kernel is not run."""
    if isinstance(compiled, Exception):
        return short(compiled)
    if compiled.metadata.shared > target.block_shared:
        return f"needs {compiled.metadata.shared} bytes of shared memory"
    try:
        assert compiled.run  # which loads the code
    except Exception as error:  # such as more registers than there are
        return short(error)
    return None


def not_locked(device_name: str) -> ToTune:
    """Wants the kernels of which no config is locked for the GPU of this name, or not all were tried there."""
    return lambda kernel, key: (
        not any(entry["device"] == device_name and all_tried(entry, kernel, key) for entry in entries_of(kernel, key))
    )


def all_tried(entry: Entry, kernel: str, key: MetaParameters) -> bool:
    """Whether the locked ``entry`` was held against all configs that the kernel has now."""
    from mfu_kernels.launching import KERNELS

    tried = {**entry.get("ms_by_config", {}), **entry.get("left_out", {})}
    return all(spelled(config) in tried for config in KERNELS[kernel].space(key))


def tune_op(
    examples: Examples,
    device: torch.device,
    *,
    shapes: Sequence[str],
    again: bool = True,
    other_forms: bool = True,
    without: Mapping[str, str] = MappingProxyType({}),
    watch: Watch = UNWATCHED,
) -> list[dict[str, Any]]:
    """Time the space of every kernel at ``shapes`` and adopt what won or stands; gives the entries to lock.

    ``again``: of all kernels but one whose config was just won, not only of those that are `not_locked`.
    ``other_forms``: also forms of a kernel other than its default's. ``without``: configs that are not run, by
    `Candidates.part`, and why.

    Raises:
        PartBroke: a config made a fault after which this process can use the GPU no more.
        ToolBroke: no config of some kernel can be timed; the others' entries have gone to ``watch``.
    """
    gpu = Gpu.of(device)
    won: list[dict[str, Any]] = []
    unfit: list[str] = []

    def wanted(kernel: str, key: MetaParameters) -> bool:
        tuned = any((entry["kernel"], entry["key"]) == (kernel, key_text(key)) for entry in won)
        return not tuned and (again or not_locked(gpu.name)(kernel, key))

    for shape in shapes:
        for candidates in candidates_of(examples, shape, gpu.target, wanted):
            if not other_forms:
                _leave_out_other_forms(candidates)
            try:
                entry = _tune_kernel(examples, shape, candidates, gpu, without, watch)
            except _NoneFits:
                unfit.append(f"{candidates.kernel} at {shape}: {candidates.left_out}")
                continue
            if entry is None:
                continue  # what the kernel would take the place of stays
            won.append(entry)
            adopt([entry])
            watch.so_far(list(won))
    if unfit:
        raise ToolBroke(f"no config can be timed of {'; '.join(unfit)}")
    return won


def _leave_out_other_forms(candidates: Candidates) -> None:
    from mfu_kernels.launching import KERNELS

    form_of = KERNELS[candidates.kernel].form_of
    for config in list(candidates.configs):
        if form_of(config) != form_of(candidates.default):
            candidates.configs.remove(config)
            candidates.left_out[spelled(config)] = "the op's contract fails with some of its configs"


def _tune_kernel(
    examples: Examples,
    shape: str,
    candidates: Candidates,
    gpu: Gpu,
    without: Mapping[str, str],
    watch: Watch,
) -> dict[str, Any] | None:
    """The entry of the config that won or stands; None where what the kernel is instead of stands.

    Raises:
        _NoneFits: none can be timed.
    """
    inputs = examples.make(examples.shapes[shape], Draw(torch.bfloat16, gpu.device, on_device=True))
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}

    def forward() -> Sequence[torch.Tensor]:
        return outputs_of(examples.function(**leaves, **inputs.others, impl="triton"))

    outputs = forward()
    weights = [torch.randn_like(out) for out in outputs]

    def backward() -> Sequence[torch.Tensor]:
        return torch.autograd.grad(outputs, list(leaves.values()), weights, retain_graph=True)

    run = forward if candidates.direction == "forward" else backward

    def with_config(config: Any) -> Callable[[], Sequence[torch.Tensor]]:
        def call() -> Sequence[torch.Tensor]:
            with forced_config(lambda kernel, _: config if kernel == candidates.kernel else None):
                return run()

        return call

    calls = {candidates.part(config): with_config(config) for config in candidates.configs}
    by_part = {candidates.part(config): config for config in candidates.configs}
    wrong = _wrong(run, calls, without, gpu.device, watch)
    candidates.left_out |= {spelled(by_part[part]): why for part, why in wrong.items()}
    right = {part: call for part, call in calls.items() if part not in wrong}
    if not right:
        raise _NoneFits
    locked = candidates.locked(gpu)
    waits = candidates.instead_of if locked is None else ""
    default = waits or candidates.part(candidates.default)
    offered = right | ({waits: run} if waits else {})
    screened = {name: float(np.median(samples)) for name, samples in _timed(offered, ROUNDS, watch).items()}
    best = min(right, key=lambda part: screened[part])
    stands = candidates.part(locked) if locked is not None and candidates.part(locked) in right else default
    again = {name: offered[name] for name in (best, stands, default) if name in offered}
    ms = _timed(again, CONFIRMING, watch)
    ratio = bootstrap_median(ms[best] / ms[stands]) if stands in ms else None
    won = best if ratio is None or ratio[2] < 1 else stands
    if won == waits:
        return None
    config = by_part[won]
    return {
        "kernel": candidates.kernel,
        "device": gpu.name,
        "target": gpu.target.name,
        "key": key_text(candidates.key),
        "config": as_locked(config),
        "shape": shape,
        "measured": f"the op's {candidates.direction} with this kernel's config alone varied",
        "ms": float(np.median(ms[won])),
        "ms_of_default": float(np.median(ms[default])) if default in ms else None,
        "config_before": None if waits else as_locked(locked or candidates.default),
        "ms_before": float(np.median(ms[stands])) if stands in ms else None,
        "ratio_of_fastest": ratio,
        "configs_timed": len(right),
        "ms_by_config": {spelled(by_part[part]): screened[part] for part in right},
        "left_out": candidates.left_out,
        "date": now(),
        "toolchain": toolchain(),
    }


def _timed(calls: Mapping[str, Callable[[], object]], rounds: int, watch: Watch) -> dict[str, npt.NDArray[np.float64]]:
    """Milliseconds of one call, by round: the same round of two is a pair."""
    return {name: np.asarray(samples) for name, samples in time_in_turns(calls, rounds=rounds, part=watch.part).items()}


def _wrong(
    proved: Callable[[], Sequence[torch.Tensor]],
    calls: Mapping[str, Callable[[], Sequence[torch.Tensor]]],
    without: Mapping[str, str],
    device: torch.device,
    watch: Watch,
) -> dict[str, str]:
    """Which of ``calls`` does not compute what is ``proved``, or is among ``without``, and why.

    Each runs twice, on memory full of NaN, and is waited for.
    """
    found: dict[str, str] = {}
    with poisoned_memory():
        expected = [tensor.detach() for tensor in proved()]
        wait_for(device)
        for part, call in calls.items():
            if part in without:
                found[part] = without[part]
                continue
            with watch.part(part):
                why = _disagreement(part, call, expected, device)
            if why is not None:
                found[part] = why
    return found


def _disagreement(
    part: str, call: Callable[[], Sequence[torch.Tensor]], expected: Sequence[torch.Tensor], device: torch.device
) -> str | None:
    try:
        once, again = call(), call()
        wait_for(device)
    except Exception as error:
        try:
            wait_for(device)
        except RuntimeError:
            raise PartBroke(part, short(error)) from error
        return short(error)
    far = max(difference(tensor.detach(), right) for tensor, right in zip(once, expected, strict=True))
    if far > DISAGREES:
        return f"its results differ from what was proved by more than {DISAGREES:.0%}"
    if not all(map(torch.equal, once, again)):
        return "its results have other bits in a second run"
    return None
