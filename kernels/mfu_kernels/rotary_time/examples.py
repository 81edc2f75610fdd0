"""What `rotary_time` is checked and timed on."""

import torch

from mfu_kernels.examples import CLICKS, IMPRESSIONS, Case, Dense, Draw, Examples, Inputs

from .op import rotary_time


def _make(case: Case, draw: Draw) -> Inputs:
    """``angles`` have a gradient where "learned"; ``std`` is that of the angles."""
    num_tokens, heads, d, strided = sum(draw.lengths(case["lengths"])), case["heads"], case["d"], case.get("strided")
    x = draw.normal(num_tokens, heads, d, strided=bool(strided))
    angles = draw.normal(num_tokens, d // 2, std=case.get("std", 30.0), dtype=torch.float32, strided=bool(strided))
    if case.get("learned"):
        return Inputs({"x": x, "angles": angles})
    return Inputs({"x": x}, {"angles": angles})


EXAMPLES = Examples(
    function=rotary_time,
    factors={
        "lengths": ((37,), (0,), (1,), (5, 0, 130)),
        "d": (64, 8, 20, 128),
        "heads": (2, 1, 5),
        "std": (30.0, 1e-3, 1000.0),
        "learned": (False, True),
        "strided": (False, True),
    },
    make=_make,
    shapes={
        "B1152 L1024": {"lengths": Dense(1152, 1024), "heads": 4, "d": 128},
        "kunlun large_plus clicks": {"lengths": CLICKS, "heads": 6, "d": 64},
        "kunlun large_plus impressions": {"lengths": IMPRESSIONS, "heads": 3, "d": 64},
    },
)
