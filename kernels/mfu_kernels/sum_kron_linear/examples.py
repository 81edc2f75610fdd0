"""What `sum_kron_linear` is checked and timed on."""

from mfu_kernels.examples import Case, Draw, Examples, Inputs

from .op import sum_kron_linear


def _make(case: Case, draw: Draw) -> Inputs:
    """z and w keep variance, as a model's do at its start; ``std`` is that of x."""
    batch, terms, num_in, num_out = case["batch"], case["terms"], case["in"], case["out"]
    in_dim, out_dim, strided = case["in_dim"], case.get("out_dim", case["in_dim"]), case.get("strided", False)
    return Inputs(
        {
            "x": draw.normal(batch, num_in, in_dim, std=case.get("std", 1.0), strided=strided),
            "z": draw.normal(terms, num_in, num_out, std=(terms * num_in) ** -0.5, strided=strided),
            "w": draw.normal(terms, in_dim, out_dim, std=in_dim**-0.5, strided=strided),
        }
    )


EXAMPLES = Examples(
    function=sum_kron_linear,
    factors={
        "batch": (5, 1, 19),
        "terms": (4, 1, 3),
        "in": (32, 5, 70),
        "out": (8, 1, 33, 100),
        "in_dim": (32, 8, 100),
        "out_dim": (64, 8, 520),
        "std": (1.0, 11.0),
        "strided": (False, True),
    },
    make=_make,
    shapes={
        "B1152 S256 T32 D512 k4": {"batch": 1152, "in": 256, "out": 32, "in_dim": 512, "terms": 4},
        "B1152 S128 T32 D512 k8": {"batch": 1152, "in": 128, "out": 32, "in_dim": 512, "terms": 8},
        "B2048 S256 T64 D512 k4": {"batch": 2048, "in": 256, "out": 64, "in_dim": 512, "terms": 4},
        "B1152 S128 T32 D256 k8": {"batch": 1152, "in": 128, "out": 32, "in_dim": 256, "terms": 8},
        "B1152 S64 T16 D256 k8": {"batch": 1152, "in": 64, "out": 16, "in_dim": 256, "terms": 8},
        "kunlun large_plus clicks": {"batch": 1024, "in": 128, "out": 32, "in_dim": 384, "terms": 8},
        "kunlun large_plus impressions": {"batch": 1024, "in": 64, "out": 16, "in_dim": 192, "terms": 8},
        "B1152 S32 T8 D64 k8": {"batch": 1152, "in": 32, "out": 8, "in_dim": 64, "terms": 8},
    },
)
