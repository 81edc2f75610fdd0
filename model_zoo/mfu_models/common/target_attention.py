"""DIN's local activation unit: how much each event of a history counts for the candidate at hand."""

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.jagged import row_of_each
from mfu_kernels.registry import Impl
from mfu_models.batch import EventSequence

from .layers import Mlp


class TargetAttention(nn.Module):
    """u = sum of a_t h_t over a row's events, with a_t = MLP([c | h_t | c - h_t | c * h_t]) a number.

    The a_t are taken as they are, or with ``softmax`` over the row; the MLP's last layer then has no bias, which
    softmax would cancel.
    """

    def __init__(self, width: int, mlp: tuple[int, ...], *, softmax: bool = False, impl: Impl = "auto") -> None:
        super().__init__()
        self.hidden = Mlp((4 * width, *mlp))
        self.weight = nn.Linear(mlp[-1], 1, bias=not softmax)
        self.softmax = softmax
        self.impl: Impl = impl

    def forward(self, events: Tensor, target: Tensor, sequence: EventSequence) -> Tensor:
        """``events`` [T, e] of ``sequence``, ``target`` [B, e] -> [B, e]; zeros where a row has no events."""
        offsets, max_length = sequence.offsets, sequence.max_length
        target = target[row_of_each(offsets, events.shape[0])]
        pairs = torch.cat([target, events, target - events, target * events], dim=-1)
        weights = self.weight(nn.functional.gelu(self.hidden(pairs))).squeeze(-1)
        if self.softmax:
            weights = ops.jagged_softmax(weights, offsets, max_length=max_length, impl=self.impl)
        return ops.weighted_pool(events, weights, offsets, max_length=max_length, impl=self.impl)
