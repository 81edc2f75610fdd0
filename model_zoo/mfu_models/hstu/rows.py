"""A batch of requests as jagged rows: a request's history, then its candidates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mfu_kernels.jagged import row_of_each
from mfu_models.batch import Batch, EventSequence


@dataclass(frozen=True, slots=True)
class RequestRows:
    """Where rows begin and end, int64 [B+1]; each ends with ``num_candidates``; ``max_length`` bounds the longest."""

    offsets: Tensor
    max_length: int
    num_candidates: int

    @classmethod
    def of(cls, batch: Batch, sequence: EventSequence) -> "RequestRows":
        """The rows that the requests of ``batch`` make with their history ``sequence``."""
        m = batch.num_candidates
        before = m * torch.arange(batch.num_requests + 1, device=sequence.offsets.device)
        return cls(sequence.offsets + before, sequence.max_length + m, m)

    def candidates(self) -> Tensor:
        """Where the candidates lie, int64 [B*m]."""
        m = self.num_candidates
        places = self.offsets[1:, None] + torch.arange(-m, 0, device=self.offsets.device)
        return places.flatten()

    def join(self, history: Tensor, candidates: Tensor, history_offsets: Tensor) -> Tensor:
        """Packed rows [T + B*m, d] of ``history`` [T, d] and ``candidates`` [B*m, d]."""
        events = torch.arange(history.shape[0], device=history.device)
        places = events + self.num_candidates * row_of_each(history_offsets, history.shape[0])
        packed = torch.cat([history, candidates])
        return torch.empty_like(packed).index_copy(0, torch.cat([places, self.candidates()]), packed)

    def last(self, num_events: int) -> tuple[Tensor, "RequestRows"]:
        """Where each row's last ``num_events`` events and its candidates lie, int64, and the rows that they make.

        How many they are in all is known from the offsets only: this waits for the device.
        """
        kept = self.offsets.diff().clamp(max=num_events + self.num_candidates)
        offsets = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
        skipped = (self.offsets[1:] - offsets[1:]).repeat_interleave(kept)
        places = skipped + torch.arange(skipped.shape[0], device=skipped.device)
        max_length = min(self.max_length, num_events + self.num_candidates)
        return places, RequestRows(offsets, max_length, self.num_candidates)
