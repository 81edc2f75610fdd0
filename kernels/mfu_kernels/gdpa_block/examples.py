"""What `gdpa_block` is checked and timed on."""

import math
from itertools import cycle, islice

import torch

from mfu_kernels.examples import CLICKS, IMPRESSIONS, Case, Dense, Draw, Examples, Inputs

from .op import gdpa_block

MIXED = ("gelu", "silu", "identity")
"""What "mixed" heads use in turn; `gdpa` is checked with every activation."""


def _make(case: Case, draw: Draw) -> Inputs:
    """Scores have the standard deviation ``std``, as a normed event has unit variance; ``mean`` moves x."""
    lengths, heads, d, strided = draw.lengths(case["lengths"]), case["heads"], case["d"], case.get("strided", False)
    keys = (len(lengths), case["keys"], heads, d)
    x = draw.normal(sum(lengths), heads, d, strided=strided)
    tensors = {
        "x": x.add_(case.get("mean", 0.0)),
        "k": draw.normal(*keys, std=case.get("std", 1.0) / math.sqrt(d), strided=strided),
        "v": draw.normal(*keys, strided=strided),
    }
    activation = case.get("activation", "gelu_tanh")
    others = {
        "offsets": draw.offsets(lengths, case.get("offsets", torch.int64)),
        "activation": tuple(islice(cycle(MIXED), heads)) if activation == "mixed" else activation,
        "scale": case.get("scale", 1.0),
        "max_length": max(lengths) + case.get("slack", 0),
    }
    return Inputs(tensors, others)


def _shape(length: int, keys: int) -> Case:
    return {"lengths": Dense(1152, length), "keys": keys, "heads": 4, "d": 128}


EXAMPLES = Examples(
    function=gdpa_block,
    factors={
        "lengths": ((5, 0, 65, 1), (0, 64, 0, 63), (0, 0), (129,), (1,)),
        "keys": (17, 1, 64, 65, 257),
        "heads": (2, 1),
        "d": (16, 8, 20, 64, 256),
        "activation": ("gelu_tanh", "relu2", "mixed"),
        "std": (1.0, 4.0, 11.0),
        "scale": (1.0, 0.3),
        "mean": (0.0, 5.0),
        "strided": (False, True),
        "offsets": (torch.int64, torch.int32),
        "slack": (0, 70),
    },
    make=_make,
    shapes={
        **{f"PFFN Q{n} KV256": _shape(n, 256) for n in (256, 512, 1024, 2048)},
        **{f"PFFN Q1024 KV{n}": _shape(1024, n) for n in (128, 64)},
        "kunlun large_plus clicks": {"lengths": CLICKS, "keys": 256, "heads": 6, "d": 64},
        "kunlun large_plus impressions": {"lengths": IMPRESSIONS, "keys": 256, "heads": 3, "d": 64},
        "tiny": {"lengths": (5, 0, 3), "keys": 3, "heads": 2, "d": 8},
    },
)
