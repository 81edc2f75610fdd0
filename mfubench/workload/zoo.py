"""What the zoo holds, as ``mfubench models`` lists it."""

from typing import Any

from torch import nn

from mfu_models import MODELS, ModelSpec

from .regions import is_table


def list_models() -> list[dict[str, Any]]:
    """Each model's name, summary and sizes; FLOPs are model FLOPs of one sample at every sequence's full length.

    A sample of a request-level model is a request of ``num_candidates``; of the others, one candidate.
    """
    return [
        {
            "name": spec.name,
            "summary": spec.summary,
            "request_level": spec.request_level,
            "sizes": {size: _size(spec, size) for size in spec.sizes},
        }
        for spec in MODELS.values()
    ]


def _size(spec: ModelSpec, size: str) -> dict[str, Any]:
    config = spec.config(size)
    flops = spec.full_length_flops(config)
    params, dense = num_params(spec.outline(config))
    candidates = config.num_candidates if spec.request_level else 1
    return {
        "fwd_gflops_per_sample": flops.fwd / 1e9,
        "train_gflops_per_sample": flops.total / 1e9,
        "num_candidates": candidates,
        "fwd_gflops_per_candidate": flops.fwd / 1e9 / candidates,
        "train_gflops_per_candidate": flops.total / 1e9 / candidates,
        "params": params,
        "dense_params": dense,
        "sequences": spec.max_lengths(config),
    }


def num_params(module: nn.Module) -> tuple[int, int]:
    """All parameters of ``module``, and those outside embedding tables."""
    total = sum(parameter.numel() for parameter in module.parameters())
    tables = {m.weight for m in module.modules() if is_table(m)}  # one that two modules share is there once
    return total, total - sum(table.numel() for table in tables)


def all_sizes() -> list[str]:
    """The sizes that some model has."""
    return list(dict.fromkeys(size for spec in MODELS.values() for size in spec.sizes))
