"""What `rms_norm` is checked and timed on."""

import torch

from mfu_kernels.examples import Case, Draw, Examples, Inputs

from .op import rms_norm


def _make(case: Case, draw: Draw) -> Inputs:
    tensors = {
        "x": draw.normal(case["rows"], case["width"], std=case.get("std", 1.0), strided=case.get("strided", False))
    }
    if case.get("weight"):
        tensors["weight"] = draw.normal(case["width"], strided=case.get("strided", False), dtype=torch.float32)
    return Inputs(tensors, {"eps": case.get("eps", 1e-6)})


EXAMPLES = Examples(
    function=rms_norm,
    factors={
        "rows": (37, 0, 1, 64, 129),
        "width": (512, 8, 20, 100, 256, 1000),
        "weight": (True, False),
        "std": (1.0, 4.0, 11.0, 1e-3),
        "eps": (1e-6, 0.1),
        "strided": (False, True),
    },
    make=_make,
    shapes={
        "norm 1.18M x 512": {"rows": 1_179_648, "width": 512, "weight": True},
        "norm 295k x 512": {"rows": 294_912, "width": 512, "weight": True},
    },
)
