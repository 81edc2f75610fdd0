"""What `seed_pooling_absorbed` is checked and timed on."""

import torch

from mfu_kernels.examples import Case, Dense, Draw, Examples, Inputs

from .op import seed_pooling_absorbed


def _make(case: Case, draw: Draw) -> Inputs:
    """``std`` is that of the scaled scores; the projections keep the deviation of what they project."""
    lengths, heads, d, width = draw.lengths(case["lengths"]), case["heads"], case["d"], case["width"]
    scale, strided = case.get("scale") or d**-0.5, case.get("strided", False)
    tensors = {
        "seeds": draw.normal(case["seeds"], heads, d, std=case.get("std", 1.0) / (abs(scale) * d**0.5)),
        "x": draw.normal(sum(lengths), width, strided=strided),
        "w_k": draw.normal(heads, d, width, std=width**-0.5),
        "w_v": draw.normal(heads, d, width, std=width**-0.5),
    }
    others = {
        "offsets": draw.offsets(lengths, torch.int32 if case.get("int32") else torch.int64),
        "scale": case.get("scale"),
        "max_length": max(lengths) + case.get("slack", 0),
    }
    return Inputs(tensors, others)


EXAMPLES = Examples(
    function=seed_pooling_absorbed,
    factors={
        "lengths": ((5, 0, 70, 1), (0, 64, 0, 63, 65, 0), (0, 0), (129,)),
        "seeds": (8, 1, 21),
        "heads": (4, 1),
        "d": (32, 12),
        "width": (64, 20, 320),
        "std": (1.0, 4.0, 11.0),
        "scale": (None, -0.3),
        "strided": (False, True),
        "int32": (False, True),
        "slack": (0, 70),
    },
    make=_make,
    shapes={"B1152 L1024 S32 D512": {"lengths": Dense(1152, 1024), "seeds": 32, "heads": 4, "d": 128, "width": 512}},
)
