"""What `seed_pooling` is checked and timed on."""

from typing import Any

import torch

from mfu_kernels.examples import CLICKS, IMPRESSIONS, Case, Dense, Draw, Examples, Inputs

from .op import seed_pooling


def _make(case: Case, draw: Draw) -> Inputs:
    """``std`` is that of the scaled scores; ``angles`` is False, True, or "learned", which need a gradient."""
    lengths, d, strided = draw.lengths(case["lengths"]), case.get("d", 128), case.get("strided", False)
    # Few softmaxes would hang on single roundings. Scores have the deviation that the case asks for.
    heads = case.get("heads", 2 if case["seeds"] >= 16 else 4)
    scale = case.get("scale") or d**-0.5
    tensors = {
        "seeds": draw.normal(case["seeds"], heads, d, std=case.get("std", 1.0) / (abs(scale) * d**0.5)),
        "k": draw.normal(sum(lengths), heads, d, strided=strided),
        "v": draw.normal(sum(lengths), heads, d, strided=strided),
    }
    others: dict[str, Any] = {
        "offsets": draw.offsets(lengths, torch.int32 if case.get("int32") else torch.int64),
        "scale": case.get("scale"),
        "max_length": max(lengths) + case.get("slack", 0),
    }
    if case.get("angles"):
        holder = tensors if case["angles"] == "learned" else others
        holder["angles"] = draw.normal(sum(lengths), d // 2, std=30.0, dtype=torch.float32)
    return Inputs(tensors, others)


_DENSE = {"heads": 4, "lengths": Dense(1152, 1024)}
EXAMPLES = Examples(
    function=seed_pooling,
    factors={
        "lengths": ((5, 0, 130, 1), (0, 64, 0, 63, 65, 0), (0, 0), (127, 0, 129), (40, 0, 300)),
        "seeds": (32, 1, 5, 64, 130),
        "d": (64, 8, 20, 128, 256),
        "angles": (False, True, "learned"),
        "std": (1.0, 4.0, 11.0),
        "scale": (None, 0.3, -0.3),
        "strided": (False, True),
        "int32": (False, True),
        "slack": (0, 300),
    },
    make=_make,
    shapes={
        "B1152 L1024 S32": {**_DENSE, "seeds": 32},
        "B1152 L1024 S64": {**_DENSE, "seeds": 64},
        "B1152 L1024 S128": {**_DENSE, "seeds": 128},
        "B256 L8192 S32": {"heads": 4, "lengths": Dense(256, 8192), "seeds": 32},
        "kunlun large_plus clicks": {"heads": 6, "lengths": CLICKS, "seeds": 128, "d": 64, "angles": True},
        "kunlun large_plus impressions": {"heads": 3, "lengths": IMPRESSIONS, "seeds": 64, "d": 64, "angles": True},
    },
)
