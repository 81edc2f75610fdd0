"""A gate from what is asked for to its document: both sides are fetched, looked at, timed if asked to, and judged."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mfubench.errors import BadInput
from mfubench.kernels.targets import TARGETS, require_targets
from mfubench.measure.environment import environment
from mfubench.progress import Progress
from mfubench.workload.prepare import DEFAULT_SIZE, device_and_dtype
from mfubench.workload.spec import NUM_ROTATED, WorkloadSpec

from .document import document
from .judge import Question, judge
from .policy import read_policy
from .selfcheck import self_check
from .source import both_sides, working_directory


@dataclass(frozen=True, slots=True)
class AskedModels:
    """``names`` of models, all of which run as ``chosen`` says: fields of a `WorkloadSpec`."""

    names: Sequence[str]
    chosen: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What a gate is asked for.

    ``base`` is a revision or a folder, ``paths`` are where imports begin, ``config`` is the file of the policy. Without
    ``targets``, kernels are compiled for all of them, or, where steps are ``timed``, for the GPU at hand alone.
    ``budget_s``: how long timing may take in all. ``exits``: what besides a FAIL ends with an exit code of its own
    (`rows.Outcome.exit_code`).
    """

    models: AskedModels
    base: str
    paths: Sequence[str] = ()
    targets: Sequence[str] = ()
    config: Path | None = None
    timed: bool = False
    budget_s: float = 0.0
    exits: Mapping[str, bool] = field(default_factory=dict)


def run_gate(request: Request, progress: Progress) -> dict[str, Any]:
    """The gate's document.

    Raises:
        BadInput: what is asked for cannot be had; of models, one that neither side has, or whose code is not the
            working directory's.
        ToolBroke: taking stock of a side broke, or git cannot check base out.
    """
    workloads = _workloads_by_name(request.models)
    timed_on = _device_of_steps(workloads) if request.timed else None
    targets = _targets_to_compile_for(request.targets, timed_on)
    policy = read_policy(request.config)
    question = Question(workloads, targets, policy.limits)
    with both_sides(request.base, request.paths) as (base, head):
        judged = judge(question, base, head, timed_on=timed_on, budget_s=request.budget_s, progress=progress)
        device = timed_on or "cpu"
        return document(judged, base, head, policy, device=device, targets=targets, exits=request.exits)


def run_self_check(
    models: AskedModels, paths: Sequence[str], config: Path | None, *, budget_s: float, progress: Progress
) -> dict[str, Any]:
    """How far this machine's gate of one model can be trusted, as a document.

    Raises:
        BadInput: there is no such model, it does not run, or the budget ends too early.
        ToolBroke: timing it broke.
    """
    workloads = _workloads_by_name(models)
    ((name, spec),) = workloads.items()
    device, margin = _device_of_steps(workloads), read_policy(config).limits["step_time"]
    side = working_directory(paths)
    found = self_check(side, asdict(spec), device, margin=margin, budget_s=budget_s, progress=progress)
    return {**found, "benchmark": name, "environment": environment(torch.device(device))}


def _workloads_by_name(models: AskedModels) -> dict[str, WorkloadSpec]:
    """The workloads by the names that rows give them."""
    if len(set(models.names)) < len(models.names):
        raise BadInput(f"{', '.join(models.names)}: a model is given twice")
    chosen = {**models.chosen}
    if "data" in chosen:
        chosen["data"] = _at_an_absolute_path(chosen["data"])
    specs = [WorkloadSpec(model=name, steps=NUM_ROTATED, **chosen) for name in models.names]
    return {spec.model if ":" in spec.model else f"{spec.model} {spec.size or DEFAULT_SIZE}": spec for spec in specs}


def _at_an_absolute_path(data: str) -> str:
    """The same data, where it has a path: base runs in another folder."""
    source, colon, place = data.partition(":")
    return f"{source}:{Path(place).expanduser().resolve()}" if colon else data


def _device_of_steps(workloads: Mapping[str, WorkloadSpec]) -> str:
    return device_and_dtype(next(iter(workloads.values())))[0].type


def _targets_to_compile_for(given: Sequence[str], timed_on: str | None) -> list[str]:
    require_targets(given)
    if given or timed_on is None:
        return list(dict.fromkeys(given or TARGETS))
    return _target_of_this_gpu() if timed_on == "cuda" else []


def _target_of_this_gpu() -> list[str]:
    """The generation of the GPU at hand, if kernels are compiled for it."""
    major, minor = torch.cuda.get_device_capability()
    return [name for name in (f"sm_{major}{minor}",) if name in TARGETS]
