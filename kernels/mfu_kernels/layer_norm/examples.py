"""What `layer_norm` is checked and timed on."""

import torch

from mfu_kernels.examples import Case, Draw, Examples, Inputs

from .op import layer_norm


def _make(case: Case, draw: Draw) -> Inputs:
    rows, width, strided = case["rows"], case["width"], case.get("strided", False)
    tensors = {"x": draw.normal(rows, width, std=case.get("std", 1.0), strided=strided)}
    if case.get("weight"):
        tensors["weight"] = draw.normal(width, strided=strided, dtype=torch.float32)
    if case.get("bias"):
        tensors["bias"] = draw.normal(width, strided=strided, dtype=torch.float32)
    if residual := case.get("residual"):
        dtype = torch.float32 if residual == "fp32" else draw.dtype
        tensors["residual"] = draw.normal(rows, width, std=case.get("std", 1.0), strided=strided, dtype=dtype)
    return Inputs(tensors, {"eps": case.get("eps", 1e-5)})


_AFFINE = {"width": 512, "weight": True, "bias": True}
EXAMPLES = Examples(
    function=layer_norm,
    factors={
        "rows": (37, 0, 3, 64, 129),  # a single row's error hangs on one rounding, that of its 1 / deviation
        "width": (512, 8, 20, 100, 256, 1000),
        "weight": (True, False),
        "bias": (True, False),
        "residual": (None, "same", "fp32"),
        "std": (1.0, 4.0, 11.0, 1e-3),
        "eps": (1e-5, 0.1),
        "strided": (False, True),
    },
    make=_make,
    shapes={
        "norm 1.18M x 512": {"rows": 1_179_648, **_AFFINE},
        "norm 295k x 512": {"rows": 294_912, **_AFFINE},
        "norm 1.18M x 512 residual": {"rows": 1_179_648, "residual": "same", **_AFFINE},
        "kunlun large_plus clicks": {"rows": 899_000, **_AFFINE, "residual": "same", "width": 384},
        "kunlun large_plus impressions": {"rows": 984_000, **_AFFINE, "residual": "same", "width": 192},
    },
)
