"""What a run says of its workload, whoever made the model."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mfubench.identity import digest
from mfubench.measure.environment import git_state

from .spec import WARMUP_STEPS, WorkloadSpec
from .zoo import num_params


def describe(
    spec: WorkloadSpec,
    module: nn.Module,
    device: torch.device,
    dtype: str,
    *,
    size: str | None,
    batch_size: int,
    data: str,
    model_id: str,
) -> dict[str, Any]:
    """The ``workload`` part of a Run, without its data hash."""
    params, dense_params = num_params(module)
    return {
        "model": spec.model,
        "size": size,
        "impl": spec.impl,
        "compile": spec.compile,
        "mode": spec.mode,
        "dtype": dtype,
        "device": device.type,
        "batch_size": batch_size,
        "num_candidates": 1,
        "request_level": False,
        "data": spec.data,
        "data_description": data,
        "lock": spec.lock,
        "seed": spec.seed,
        "steps": spec.steps,
        "warmup_steps": WARMUP_STEPS,
        "overrides": dict(spec.overrides),
        "num_params": params,
        "dense_params": dense_params,
        "model_hash": digest(spec.model, model_id),
        "data_hash": "",
    }


@cache
def code_of(model: str) -> dict[str, Any]:
    """``model_git_sha`` and ``model_git_dirty`` of the checkout that tracks the imported module of ``model``.

    Both are None where none does, and for what was typed in; `mfubench.measure.environment.git_state` says how.
    """
    file = getattr(sys.modules.get(model.partition(":")[0]), "__file__", None)
    state = git_state(Path(file)) if file else dict.fromkeys(("git_sha", "git_dirty"))
    return {f"model_{key}": value for key, value in state.items()}
