"""What `window_attention` is checked and timed on."""

from typing import Any

import torch

from mfu_kernels.examples import CLICKS, IMPRESSIONS, Case, Dense, Draw, Examples, Inputs

from .op import window_attention

LENGTHS = ((5, 0, 70, 1), (0, 32, 0, 31, 33, 0), (0, 0), (1, 9), (63, 65, 0), (129,))


def _make(case: Case, draw: Draw) -> Inputs:
    """``std`` is that of the scaled scores; ``angles`` is False, True, or "learned", which need a gradient."""
    lengths, heads, d = draw.lengths(case["lengths"]), case.get("heads", 4), case["d"]
    num_tokens, strided = sum(lengths), case.get("strided", False)
    std = case.get("std", 1.0) ** 0.5
    tensors = {
        "q": draw.normal(num_tokens, heads, d, std=std, strided=strided),
        "k": draw.normal(num_tokens, heads, d, std=std, strided=strided),
        "v": draw.normal(num_tokens, heads, d, strided=strided),
    }
    others: dict[str, Any] = {
        "offsets": draw.offsets(lengths, case.get("offsets", torch.int64)),
        "window": case["window"],
        "causal": case["causal"],
        "max_length": max(lengths) + case.get("slack", 0),
    }
    if case.get("angles"):
        holder = tensors if case["angles"] == "learned" else others
        holder["angles"] = draw.normal(num_tokens, d // 2, std=30.0, dtype=torch.float32)
    return Inputs(tensors, others)


def _swa(rows: int, length: int, window: int, *, causal: bool = True, angles: bool = False) -> Case:
    return {"lengths": Dense(rows, length), "d": 128, "window": window, "causal": causal, "angles": angles}


_KUNLUN = {"d": 64, "causal": False, "angles": True}
EXAMPLES = Examples(
    function=window_attention,
    factors={
        "lengths": LENGTHS,
        "d": (64, 8, 20, 128, 256),
        "window": (16, 1, 64, None),
        "causal": (True, False),
        "angles": (False, True, "learned"),
        "std": (1.0, 4.0, 11.0),
        "strided": (False, True),
        "offsets": (torch.int64, torch.int32),
        "slack": (0, 7),
        "heads": (2, 1),
    },
    make=_make,
    shapes={
        "swa B1152 L1024 W64": _swa(1152, 1024, 64),
        "swa B1152 L1024 W128": _swa(1152, 1024, 128),
        "swa B1152 L1024 W256": _swa(1152, 1024, 256),
        "swa B1152 L1024 W64 both ways": _swa(1152, 1024, 64, causal=False),
        "swa B1152 L1024 W128 both ways": _swa(1152, 1024, 128, causal=False),
        "swa B1152 L1024 W256 both ways": _swa(1152, 1024, 256, causal=False),
        "swa B1152 L1024 W128 both ways rotated": _swa(1152, 1024, 128, causal=False, angles=True),
        "swa B1152 L2048 W128": _swa(1152, 2048, 128),
        "swa B512 L4096 W256": _swa(512, 4096, 256),
        "swa B32 L16384 W256": _swa(32, 16384, 256),
        "kunlun large_plus clicks": {**_KUNLUN, "lengths": CLICKS, "heads": 6, "window": 100},
        "kunlun large_plus impressions": {**_KUNLUN, "lengths": IMPRESSIONS, "heads": 3, "window": 50},
    },
)
