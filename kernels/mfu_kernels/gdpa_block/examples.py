"""What `gdpa_block` is checked and timed on."""

import torch

from mfu_kernels.examples import EDGE_LENGTHS, Case, Dense, Draw, Examples, Inputs

from .op import gdpa_block


def _make(case: Case, draw: Draw) -> Inputs:
    lengths, heads, d, num_keys = draw.lengths(case["lengths"]), case["heads"], case["d"], case["num_keys"]
    strided, std = case.get("strided", False), case.get("std", 1.0)
    tensors = {
        "x": draw.normal(sum(lengths), heads, d, strided=strided),
        "k": draw.normal(len(lengths), num_keys, heads, d, std=std / d**0.5, strided=strided),
        "v": draw.normal(len(lengths), num_keys, heads, d, strided=strided),
    }
    others = {
        "offsets": draw.offsets(lengths, case.get("offsets", torch.int64)),
        "activation": case.get("activation", "gelu_tanh"),
        "scale": case.get("scale", 1.0),
        "max_length": max(lengths) + case.get("slack", 0),
    }
    return Inputs(tensors, others)


def _named(length: int, num_keys: int) -> Case:
    return {"lengths": Dense(1152, length), "heads": 4, "d": 128, "num_keys": num_keys}


EXAMPLES = Examples(
    function=gdpa_block,
    factors={
        "lengths": EDGE_LENGTHS,
        "num_keys": (17, 1, 64, 100, 257),
        "heads": (2, 1, 3),
        "d": (16, 8, 64, 20),
        "activation": ("gelu_tanh", "gelu", "relu", "relu2", "leaky_relu", "silu", "hardswish", "identity"),
        "std": (1.0, 4.0, 11.0),
        "scale": (1.0, 0.25),
        "strided": (False, True),
        "offsets": (torch.int64, torch.int32),
    },
    make=_make,
    shapes={
        "PFFN Q256 KV256": _named(256, 256),
        "PFFN Q512 KV256": _named(512, 256),
        "PFFN Q1024 KV256": _named(1024, 256),
        "PFFN Q2048 KV256": _named(2048, 256),
        "PFFN Q1024 KV128": _named(1024, 128),
        "PFFN Q1024 KV64": _named(1024, 64),
    },
)
