"""Look-up in the tables of several fields in plain aten."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mfu_kernels.formulas import needs_grad
from mfu_kernels.jagged import row_lengths

SPREAD_ROWS = 8_192  # that a field's look-ups share at least, while gradients are computed


def embedding_reference(weight: Tensor, ids: Tensor, offsets: Tensor, *, vocabs: Sequence[int] | None) -> Tensor:
    """Look rows up; where a gradient is needed, those of a field of few rows in copies, by the look-ups in turns.

    A GPU sums up a row's gradient in one go, however many look-ups there are: where events have one of 16 actions, half
    of them the same, copies took that to a fifth (docs/measured-facts.md).
    """
    if not needs_grad(weight):
        return F.embedding(ids + offsets[:-1], weight)
    vocabs = row_lengths(offsets) if vocabs is None else list(vocabs)
    copies = [max(1, SPREAD_ROWS // max(1, vocab)) for vocab in vocabs]
    fields = zip(weight.split(vocabs), copies, strict=True)
    table = torch.cat([field.repeat_interleave(times, dim=0) for field, times in fields])
    counts = offsets.diff()
    times = (SPREAD_ROWS // counts.clamp(min=1)).clamp(min=1)
    first = (counts * times).cumsum(0) - counts * times
    turn = torch.arange(ids.shape[0], device=ids.device)[:, None] % times
    return F.embedding(ids * times + turn + first, table)
