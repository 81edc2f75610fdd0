"""Where the fields' rows lie in the table that they share."""

from functools import cache
from itertools import accumulate

import torch
from torch import Tensor


def begins(counts: tuple[int, ...]) -> tuple[int, ...]:
    """The first row of each field, and behind the last field the number of rows."""
    return (0, *accumulate(counts))


@torch.compiler.assume_constant_result
def on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 ``numbers`` on ``device``, brought there once and kept: bringing them waits for the device.

    A compiled graph holds the kept tensor.
    """
    return _kept(numbers, device)


@cache
def _kept(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device)
