"""What runs in processes of their own besides trials: the survey, the last comparison, the end's profile."""

import inspect
import time
from dataclasses import dataclass
from typing import Any

from torch import nn

from mfubench.measure.environment import environment
from mfubench.profiling import profile_workload
from mfubench.run import Run
from mfubench.workload.prepare import digest
from mfubench.workload.regions import MODEL
from mfubench.workload.spec import Workload, WorkloadSpec

from .build import build
from .changes import Change, Compile
from .gain import LOOKS, Gain, log_ratios
from .isolated import Tell
from .recipe import architecture
from .survey import Survey, survey
from .trial import TIMING, arms_of

LEVEL = 0.05
ENOUGH_S = 30.0  # of timing; more blocks are not worth it
OWN = ("torch", "mfu_models", "mfu_kernels")


def identify(spec: WorkloadSpec, tell: Tell) -> dict[str, Any]:
    """Whose search it is: model, data, device and versions; a search goes on only where all are the same."""
    tell("building the model")
    return _identity(build(spec).workload)


def _identity(workload: Workload) -> dict[str, Any]:
    found = environment(workload.device)
    described = ("model", "size", "mode", "dtype", "batch_size", "impl", "model_hash", "data_hash")
    return {
        **{key: workload.description[key] for key in described},
        **{key: found[key] for key in ("mfubench", "torch", "triton", "device_name", "torch_threads")},
        "architecture": architecture(workload.module),
        "code": _code(workload.module),
    }


def _code(model: nn.Module) -> str:
    """A hash of the user's own classes among the model's modules: another forward is another model."""
    classes = {type(module) for module in model.modules()}
    own = [kind for kind in classes if kind.__module__.partition(".")[0] not in OWN]
    return digest(sorted(_source(kind) for kind in own))


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed in, or made by a function
        return f"{kind.__module__}.{kind.__qualname__}"


def take_stock(spec: WorkloadSpec, tell: Tell) -> tuple[dict[str, Any], Run, Survey]:
    """Identity, profile and survey of the start."""
    identity = identify(spec, tell)
    run, found = survey(spec, tell)
    return identity, run, found


@dataclass(frozen=True, slots=True)
class Finale:
    """The start beside what was kept and, with ``plain``, beside plain torch.compile of the whole start."""

    spec: WorkloadSpec
    kept: tuple[Change, ...]
    plain: bool
    dynamic: bool


def finale(request: Finale, tell: Tell) -> dict[str, dict[str, float]]:
    """How many times as fast as the start ``end`` and ``plain`` are, and ``end over plain``; of what there is."""
    states: dict[str, tuple[Change, ...]] = {"start": ()}
    if request.kept:
        states["end"] = request.kept
    if request.plain:
        states["plain"] = (Compile(MODEL, dynamic=request.dynamic),)
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
        return Gain.of(logs, LEVEL).speedup

    gains = {name: gain("start", name) for name in names[1:]}
    if {"end", "plain"} <= gains.keys():
        gains["end over plain"] = gain("plain", "end")
    return gains


def profile_changed(request: Finale, tell: Tell) -> Run:
    """The profile of the start with what was kept."""
    tell("building the model")
    return profile_workload(build(request.spec, request.kept).workload)
