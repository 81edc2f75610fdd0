"""What `hstu_attention` is checked and timed on."""

from typing import Any

import torch

from mfu_kernels.examples import Case, Dense, Draw, Examples, Inputs, Uniform

from .op import hstu_attention

LENGTHS = ((5, 0, 70, 1), (0, 32, 0, 31, 33, 0), (0, 0), (1, 9), (63, 65, 0), (129,))


def _make(case: Case, draw: Draw) -> Inputs:
    """``std`` is that of the scaled products; ``bias`` the number of its distances, or None."""
    lengths, heads, d = draw.lengths(case["lengths"]), case.get("heads", 4), case["d"]
    num_tokens, strided = sum(lengths), case.get("strided", False)
    std = case.get("std", 1.0) ** 0.5
    tensors = {
        "q": draw.normal(num_tokens, heads, d, std=std, strided=strided),
        "k": draw.normal(num_tokens, heads, d, std=std, strided=strided),
        "v": draw.normal(num_tokens, heads, case.get("d_v", d), strided=strided),
    }
    if case.get("bias"):
        tensors["bias"] = draw.normal(heads, case["bias"], dtype=torch.float32)
    others: dict[str, Any] = {
        "offsets": draw.offsets(lengths, case.get("offsets", torch.int64)),
        "norm_length": case.get("norm_length", max(1, *lengths)),
        "window": case.get("window"),
        "first_keys": case.get("first_keys", 0),
        "num_candidates": case.get("num_candidates", 1),
        "max_length": max(lengths) + case.get("slack", 0),
    }
    return Inputs(tensors, others)


EXAMPLES = Examples(
    function=hstu_attention,
    factors={
        "lengths": LENGTHS,
        "d": (64, 8, 20, 128, 256),
        "d_v": (64, 16, 40),
        "window": (None, 0, 16, 64),
        "first_keys": (0, 3, 40),
        "num_candidates": (1, 2, 40),
        "bias": (None, 1, 20, 200),
        "std": (1.0, 4.0, 11.0),
        "strided": (False, True),
        "offsets": (torch.int64, torch.int32),
        "slack": (0, 7),
        "heads": (2, 1),
    },
    make=_make,
    shapes={
        "hstu B128 L1024": {"lengths": Dense(128, 1024), "d": 128},
        "hstu B512 L4096": {"lengths": Dense(512, 4096), "d": 128},
        "hstu B512 L4096 uniform": {"lengths": Uniform(512, 4096), "d": 128},
        "hstu B128 L1024 bias": {"lengths": Dense(128, 1024), "d": 128, "bias": 1024},
        "hstu B128 L1024 W256 semi-local": {
            **{"lengths": Dense(128, 1024), "d": 128, "window": 256, "first_keys": 64, "num_candidates": 20}
        },
    },
)
