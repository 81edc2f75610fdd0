"""DIEN's part: interests out of events by a GRU, their way towards the candidate by an AUGRU, the auxiliary loss."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.jagged import row_of_each
from mfu_kernels.precision import widened
from mfu_kernels.registry import Impl
from mfu_models.batch import EventSequence
from mfu_models.common.layers import Mlp, drawn

from .config import DinConfig


class Recurrence(nn.Module):
    """A GRU over each row, or with ``attention`` an AUGRU, whose update gate each event's attention scales."""

    def __init__(self, in_width: int, width: int, impl: Impl) -> None:
        super().__init__()
        self.of_input = nn.Linear(in_width, 3 * width)
        self.of_state = drawn(width, 3 * width, std=width**-0.5)
        self.impl: Impl = impl

    def forward(self, x: Tensor, sequence: EventSequence, attention: Tensor | None = None) -> Tensor:
        """``x`` [T, e], ``attention`` [T] or None -> the states [T, h]."""
        return ops.jagged_gru(
            self.of_input(x),
            self.of_state,
            sequence.offsets,
            attention=attention,
            max_length=sequence.max_length,
            impl=self.impl,
        )


class InterestAttention(nn.Module):
    """a_t = softmax over the row of h_t^T W c."""

    def __init__(self, interest_width: int, width: int, impl: Impl) -> None:
        super().__init__()
        self.key = nn.Linear(interest_width, width, bias=False)
        self.impl: Impl = impl

    def forward(self, states: Tensor, target: Tensor, sequence: EventSequence) -> Tensor:
        """``states`` [T, h], ``target`` [B, e] -> [T]."""
        offsets, max_length = sequence.offsets, sequence.max_length
        scores = ops.jagged_linear(
            self.key(states), target.unsqueeze(-1), offsets, max_length=max_length, impl=self.impl
        )
        return ops.jagged_softmax(scores.squeeze(-1), offsets, max_length=max_length, impl=self.impl)


class AuxiliaryLoss(nn.Module):
    """How well the state before an event tells it from one of another item: the mean cross entropy of both.

    The other event lies half a batch away, which needs no sampler and gives the same loss at every run. Where it is of
    the same item, as where a request's history is repeated for each of its candidates, the one before it is taken; and
    where that is, too, there is no other event, and nothing to tell apart.
    """

    def __init__(self, interest_width: int, width: int, mlp: tuple[int, ...]) -> None:
        super().__init__()
        self.mlp = Mlp((interest_width + width, *mlp, 1))

    def forward(self, states: Tensor, events: Tensor, sequence: EventSequence) -> Tensor:
        """``states`` [T, h], ``events`` [T, e] of ``sequence`` -> a scalar."""
        num_events = events.shape[0]
        index = torch.arange(num_events, device=events.device)
        begins = index == sequence.offsets[row_of_each(sequence.offsets, num_events)]
        before = states.roll(1, dims=0).masked_fill(begins[:, None], 0)
        others, differ = _other_events(events, sequence.item_ids)
        happened, other = (widened(self.mlp(torch.cat([before, event], dim=-1))) for event in (events, others))
        losses = nn.functional.softplus(-happened) + differ[:, None] * nn.functional.softplus(other)
        return losses.sum() / max(1, num_events)


def _other_events(events: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """For each of ``events`` [T, e] one of another of ``items`` [T], and whether there is such a one, bool [T]."""
    half = events.shape[0] // 2
    first, second = (items.roll(shift, dims=0) for shift in (half, half + 1))
    others = torch.where((first != items)[:, None], events.roll(half, dims=0), events.roll(half + 1, dims=0))
    return others, (first != items) | (second != items)


class Interest(NamedTuple):
    """What a history becomes: ``user`` [B, h + e], and in training the auxiliary loss."""

    user: Tensor
    auxiliary_loss: Tensor | None


class InterestEvolution(nn.Module):
    """A row's last interest on its way to the candidate, beside the mean of its events."""

    def __init__(self, config: DinConfig, impl: Impl) -> None:
        super().__init__()
        e, h = config.width, config.interest_width
        self.gru = Recurrence(e, h, impl)
        self.attention = InterestAttention(h, e, impl)
        self.augru = Recurrence(h, h, impl)
        self.auxiliary = AuxiliaryLoss(h, e, config.aux_mlp)
        self.impl: Impl = impl

    def forward(self, events: Tensor, target: Tensor, sequence: EventSequence) -> Interest:
        """``events`` [T, e], ``target`` [B, e] -> [B, h + e]; zeros where a row has no events."""
        states = self.gru(events, sequence)
        evolved = self.augru(states, sequence, self.attention(states, target, sequence))
        mean = ops.jagged_pool(events, sequence.offsets, max_length=sequence.max_length, impl=self.impl)
        user = torch.cat([_last_of_each(evolved, sequence.offsets), mean], dim=-1)
        return Interest(user, self.auxiliary(states, events, sequence) if self.training else None)


def _last_of_each(values: Tensor, offsets: Tensor) -> Tensor:
    """[T, h] -> [B, h]: each row's last value, zeros for an empty row."""
    with_zeros = torch.cat([values, values.new_zeros(1, values.shape[1])])
    last = torch.where(offsets.diff() > 0, offsets[1:] - 1, values.shape[0])
    return with_zeros[last]
