"""What runs in processes of their own besides trials: the survey, the last comparison, the end's profile."""

import inspect
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mfubench.identity import code_hash, digest
from mfubench.isolated import Tell
from mfubench.measure.effect import ALPHA, log_ratios
from mfubench.measure.environment import environment
from mfubench.measure.stats import median_ci
from mfubench.profiling import profile_workload
from mfubench.run import Run
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WorkloadSpec

from .build import build
from .changes import Change
from .gain import LOOKS, Gain
from .recipe import architecture
from .survey import Survey, survey
from .trial import TIMING, Arms, arms_of

ENOUGH_S = 30.0  # of timing; more blocks are not worth it
OWN = ("torch", "mfu_models", "mfu_kernels")


def identify(spec: WorkloadSpec, tell: Tell) -> dict[str, Any]:
    """Whose search it is: model, data, device and versions; a search goes on only where all are the same.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: it cannot be built.
    """
    tell("building the model")
    workload = prepare(spec)
    found = environment(workload.device)
    described = ("model", "size", "mode", "dtype", "batch_size", "impl", "model_hash", "data_hash", "lock")
    return {
        **{key: workload.description[key] for key in described},
        **{key: found[key] for key in ("mfubench", "torch", "triton", "device_name", "torch_threads")},
        "architecture": architecture(workload.module),
        "model_code": _code(workload.module),
        "training": digest(_source(workload.loss), [_settings(optimizer) for optimizer in workload.optimizers]),
        "code": code_hash(),
    }


def _code(model: nn.Module) -> str:
    """A hash of the user's own classes among the model's modules: another forward is another model."""
    classes = {type(module) for module in model.modules()}
    own = [kind for kind in classes if kind.__module__.partition(".")[0] not in OWN]
    return digest(sorted(_source(kind) for kind in own))


def _settings(optimizer: torch.optim.Optimizer) -> str:
    """Its class, and what each group of parameters is updated with."""
    groups = [{key: group[key] for key in sorted(group) if key != "params"} for group in optimizer.param_groups]
    return f"{type(optimizer).__name__} {groups}"


def _source(code: Any) -> str:
    """The source of a class or function, or its name where there is none."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):  # typed in, or made by a function
        return f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', type(code).__qualname__)}"


def take_stock(spec: WorkloadSpec, tell: Tell) -> tuple[dict[str, Any], Run, Survey]:
    """Identity, profile and survey of the start."""
    identity = identify(spec, tell)
    run, found = survey(spec, tell)
    return identity, run, found


@dataclass(frozen=True, slots=True)
class Finale:
    """The start beside what was kept and, unless it is None, beside ``plain`` torch.compile."""

    spec: WorkloadSpec
    kept: tuple[Change, ...]
    plain: Change | None = None


@dataclass(slots=True)
class Ends:
    """What came of them: how many times as fast as the start ``end`` and ``plain`` are, and ``end over plain``.

    ``steps`` has the step of each, as a Run has it. Of what was not timed there is nothing.
    """

    gains: dict[str, dict[str, float]] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    def say_of_both(self, timed: str, other: str) -> None:
        """``other`` is the same as what was timed as ``timed``."""
        self.gains[other], self.steps[other] = self.gains[timed], self.steps[timed]
        self.gains.pop("end over plain", None)


def finale(request: Finale, tell: Tell) -> Ends:
    """Time start, end and plain torch.compile in turn."""
    states: dict[str, tuple[Change, ...]] = {"start": ()}
    if request.kept:
        states["end"] = request.kept
    if request.plain:
        states["plain"] = (request.plain,)
    names = list(states)
    arms = arms_of(request.spec, list(states.values()), tell)
    tell(TIMING)
    began = time.monotonic()
    timings: list[list[tuple[float, float]]] = [[] for _ in names]
    for first, enough in zip((0, *LOOKS), LOOKS, strict=False):
        for known, more in zip(timings, arms.blocks(first, enough - first), strict=True):
            known.extend(more)
        if time.monotonic() - began > ENOUGH_S:
            break

    def gain(old: str, new: str) -> dict[str, float]:
        a, b = names.index(old), names.index(new)
        logs = log_ratios(timings[a], timings[b], lambda block: arms.samples[b] / arms.samples[a])
        return Gain.of(logs, ALPHA).speedup

    gains = {name: gain("start", name) for name in names[1:]}
    if {"end", "plain"} <= gains.keys():
        gains["end over plain"] = gain("plain", "end")
    return Ends(gains, {name: _step(arms, arm, timings[arm]) for arm, name in enumerate(names)})


def _step(arms: Arms, arm: int, turns: list[tuple[float, float]]) -> dict[str, Any]:
    """A step's time and samples a second, of an arm's turns in milliseconds."""
    median, low, high = median_ci([ms / arms.steps_a_turn for block in turns for ms in block])
    samples = arms.samples[arm] / arms.steps_a_turn
    return {
        "time_ms": {"median": median, "ci95_low": low, "ci95_high": high},
        "samples_per_s": 1e3 * samples / median,
    }


def profile_changed(request: Finale, tell: Tell) -> Run:
    """The profile of the start with what was kept."""
    tell("building the model")
    return profile_workload(build(request.spec, request.kept))
