"""Look-up in the tables of several fields in plain aten."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mfu_kernels.formulas import needs_grad

from .fields import begins, on_device

SPREAD_ROWS = 8_192  # that a field's look-ups share at least, while gradients are computed


def embedding_reference(weight: Tensor, ids: Tensor, *, vocabs: tuple[int, ...]) -> Tensor:
    """Look rows up; where a gradient is needed, those of a field of few rows in copies, by the look-ups in turns.

    A GPU sums up a row's gradient in one go, however many look-ups there are: of two fields that 900 000 events share,
    one of 16 rows and one of 200, gradients took a fifth of the time with copies (docs/measured-facts.md).
    """
    if not needs_grad(weight):
        return F.embedding(ids + on_device(begins(vocabs)[:-1], ids.device), weight)
    copies = tuple(max(1, SPREAD_ROWS // vocab) for vocab in vocabs)
    spread = tuple(vocab * times for vocab, times in zip(vocabs, copies, strict=True))
    times, first = on_device(copies, ids.device), on_device(begins(spread)[:-1], ids.device)
    turn = torch.arange(ids.shape[0], device=ids.device)[:, None] % times
    fields = zip(weight.split(vocabs), copies, strict=True)
    table = torch.cat([field.repeat_interleave(each, dim=0) for field, each in fields])
    return F.embedding(ids * times + turn + first, table)
