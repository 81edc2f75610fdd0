"""What `embedding` is checked and timed on."""

import math

import torch
from torch import Tensor

from mfu_kernels.examples import Case, Draw, Examples, Inputs

from .op import embedding

EVENT = (50_000, 200, 16)  # items, categories and actions of the zoo's large synthetic schema
POPULARITY_OFFSET = 45  # as synthetic logs draw items: the r-th one's share ~ 1 / (r + 45)


def _ids(case: Case, draw: Draw) -> Tensor:
    """``spread``: evenly; ``hot``: half of each field's are 0; ``once``: every id in turn.

    ``log``: low ids of the first field more often, half of the last one's 0, as items and actions of a synthetic log.
    """
    events, vocabs = case["events"], torch.tensor(case["vocabs"], device=draw.device)
    if case["ids"] == "once":
        return torch.arange(events, device=draw.device)[:, None] % vocabs
    even, other = (torch.special.ndtr(draw.normal(events, len(vocabs), dtype=torch.float32)) for _ in "ab")
    field = torch.arange(len(vocabs), device=draw.device)
    if case["ids"] == "log":
        popular = POPULARITY_OFFSET * torch.expm1(even * torch.log1p(vocabs / POPULARITY_OFFSET)) / vocabs
        even = torch.where(field == 0, popular, even)
    alike = {"spread": field < 0, "hot": field >= 0, "log": field == len(vocabs) - 1}[case["ids"]]
    even = torch.where(alike & (other < 0.5), 0.0, even)
    return torch.minimum((even * vocabs).long(), vocabs - 1)


def _make(case: Case, draw: Draw) -> Inputs:
    ids = _ids(case, draw).to(case.get("ids_dtype", torch.int64))
    if case.get("strided"):
        ids = ids.T.contiguous().T
    std = 1 / math.sqrt(case["width"])
    weight = draw.normal(sum(case["vocabs"]), case["width"], std=std, strided=case.get("strided", False))
    return Inputs({"weight": weight}, {"ids": ids, "offsets": draw.offsets(case["vocabs"]), "vocabs": case["vocabs"]})


EXAMPLES = Examples(
    function=embedding,
    factors={
        "events": (37, 0, 1, 90),
        "vocabs": ((50, 7), (1,), (300, 16), (5, 65_600)),
        "width": (64, 8, 20, 100, 260),
        "ids": ("spread", "log", "hot", "once"),
        "strided": (False, True),
        "ids_dtype": (torch.int64, torch.int32),
    },
    make=_make,
    shapes={
        "kunlun large_plus clicks": {"events": 934_000, "vocabs": EVENT, "width": 384, "ids": "log"},
        "kunlun large_plus impressions": {"events": 1_029_000, "vocabs": EVENT, "width": 192, "ids": "log"},
        "kunlun large_plus context": {"events": 1_024, "vocabs": (1_000,) * 64, "width": 384, "ids": "spread"},
    },
)
