"""What `gdpa` is checked and timed on."""

import math

import torch

from mfu_kernels.activations import ACTIVATIONS
from mfu_kernels.examples import EDGE_LENGTHS, Case, Dense, Draw, Examples, Inputs, Uniform

from .op import gdpa


def _make(case: Case, draw: Draw) -> Inputs:
    """Scores have the standard deviation ``std``: keys are scaled down by the root of d."""
    lengths, heads, d, strided = draw.lengths(case["lengths"]), case["heads"], case["d"], case.get("strided", False)
    keys = (len(lengths), case["keys"], heads, d)
    tensors = {
        "q": draw.normal(sum(lengths), heads, d, std=case.get("std", 1.0), strided=strided),
        "k": draw.normal(*keys, std=1 / math.sqrt(d), strided=strided),
        "v": draw.normal(*keys, strided=strided),
    }
    activation = case.get("activation", "gelu_tanh")
    names = [activation, "identity", "identity", activation][:heads] if case.get("mixed") else activation
    offsets = draw.offsets(lengths, case.get("offsets", torch.int64))
    longer = case.get("slack", 0) + max(lengths)
    return Inputs(
        tensors, {"offsets": offsets, "scale": case.get("scale", 1.0), "activation": names, "max_length": longer}
    )


def _shape(lengths: Dense | Uniform, keys: int, d: int = 128) -> Case:
    return {"lengths": lengths, "keys": keys, "d": d, "heads": 4}


ROWS = 1152
EXAMPLES = Examples(
    function=gdpa,
    factors={
        "lengths": EDGE_LENGTHS,
        "keys": (64, 1, 3, 17, 100, 128, 256, 257),
        "d": (64, 8, 20, 128, 256),
        "heads": (2, 1),
        "activation": ("gelu_tanh", *(name for name in ACTIVATIONS if name != "gelu_tanh")),
        "mixed": (False, True),
        "scale": (1.0, 0.3),
        "std": (1.0, 4.0, 11.0),
        "strided": (False, True),
        "offsets": (torch.int64, torch.int32),
        "slack": (0, 70),
    },
    make=_make,
    shapes={
        **{f"X{n}": _shape(Dense(ROWS, n), 256) for n in (256, 512, 1024, 2048)},
        **{f"X{n} uniform": _shape(Uniform(ROWS, n), 256) for n in (1024, 2048)},
        **{f"KV{n}": _shape(Dense(ROWS, 1024), n) for n in (64, 128, 512)},
        **{f"S{n}": _shape(Dense(ROWS, n), n) for n in (512, 1024, 2048)},
        "AB": _shape(Dense(ROWS, 1000), 512),
        "TBL": _shape(Dense(ROWS, 1000), 1000),
        "OFM2": _shape(Uniform(2048, 800, least=1), 256, d=64),
        "tiny": {"lengths": (5, 0, 3), "keys": 3, "d": 8, "heads": 2},
    },
)
