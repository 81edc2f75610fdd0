"""What `window_attention` is checked and timed on."""

from mfu_kernels.examples import EDGE_LENGTHS, Case, Dense, Draw, Examples, Inputs

from .op import window_attention


def _make(case: Case, draw: Draw) -> Inputs:
    lengths, heads, d = draw.lengths(case["lengths"]), case.get("heads", 2), case["d"]
    strided, num_tokens = case.get("strided", False), sum(lengths)
    std = (case.get("std", d**0.5) / d**0.5) ** 0.5  # of q and k, for scores of the deviation that the case asks for
    tensors = {
        "q": draw.normal(num_tokens, heads, d, std=std, strided=strided),
        "k": draw.normal(num_tokens, heads, d, std=std, strided=strided),
        "v": draw.normal(num_tokens, heads, d, strided=strided),
    }
    others = {
        "offsets": draw.offsets(lengths),
        "window": case["window"],
        "causal": case["causal"],
        "max_length": max(lengths) + case.get("slack", 0),
    }
    if case.get("angles"):
        others["angles"] = draw.normal(num_tokens, d // 2, std=30.0)
    return Inputs(tensors, others)


EXAMPLES = Examples(
    function=window_attention,
    factors={
        "lengths": EDGE_LENGTHS,
        "d": (64, 8, 20, 32, 128),
        "window": (16, 0, 64, 100, None),
        "causal": (True, False),
        "angles": (False, True),
        "strided": (False, True),
    },
    make=_make,
    shapes={
        "swa L1024 W128": {"lengths": Dense(1152, 1024), "heads": 4, "d": 128, "window": 128, "causal": True},
        "swa L1024 W128 rot": {"lengths": Dense(1152, 1024), "heads": 4, "d": 128, "window": 128, "causal": True, "angles":True},
    },
)
