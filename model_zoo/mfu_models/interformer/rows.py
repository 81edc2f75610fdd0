"""A history with CLS tokens before it: where they, the events and the most recent events of each row lie."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mfu_kernels.jagged import row_of_each
from mfu_models.common.merging import Alignment


@dataclass(frozen=True, slots=True)
class Rows:
    """Jagged rows of ``num_cls`` CLS tokens, then the sample's events; N is the sum of the B lengths.

    ``first`` [B] is each row's first token, ``order`` [N] the places of all CLS tokens, row by row, then of all events.
    """

    offsets: Tensor
    max_length: int
    num_cls: int
    first: Tensor
    order: Tensor

    @staticmethod
    def of(events: Alignment, num_cls: int) -> "Rows":
        """Rows of ``events`` with ``num_cls`` tokens more before each."""
        begins = events.offsets
        offsets = begins + num_cls * torch.arange(begins.shape[0], device=begins.device)
        first = offsets[:-1]
        cls = first[:, None] + torch.arange(num_cls, device=begins.device)
        index = torch.arange(events.num_events, device=begins.device)
        row = row_of_each(begins, events.num_events)
        order = torch.cat([cls.flatten(), index + num_cls * (row + 1)])
        return Rows(offsets, events.max_length + num_cls, num_cls, first, order)

    def prepend(self, cls: Tensor, events: Tensor) -> Tensor:
        """``cls`` [B, num_cls, d] before each row of ``events`` [T, d]: [N, d]."""
        packed = torch.cat([cls.flatten(0, 1), events])
        return torch.empty_like(packed).index_copy(0, self.order, packed)

    def positions(self) -> Tensor:
        """Each token's place in its row, [N]."""
        index = torch.arange(self.order.shape[0], device=self.order.device)
        return index - self.first[row_of_each(self.offsets, self.order.shape[0])]

    def cls(self, s: Tensor) -> Tensor:
        """The CLS tokens of each row: [N, d] -> [B, num_cls, d]."""
        return s[self.first[:, None] + torch.arange(self.num_cls, device=s.device)]

    def recent(self, s: Tensor, count: int) -> Tensor:
        """The last ``count`` events of each row, latest first, zeros where it has fewer: [N, d] -> [B, count, d]."""
        place = self.offsets[1:, None] - 1 - torch.arange(count, device=s.device)
        is_event = place >= self.first[:, None] + self.num_cls
        return torch.where(is_event[..., None], s[place.clamp(min=0)], 0.0)
