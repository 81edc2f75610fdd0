"""What a run says of its workload, whoever made the model."""

from typing import Any

import torch
from torch import nn

from mfubench.identity import digest

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
