"""Several event sequences of a sample as one, aligned on their most recent events (InterFormer, arXiv 2411.09852).

    S       = [S_1 | .. | S_k]          [T, k e]    the t-th place from a row's end has each sequence's t-th last event
    MaskNet = W_lce (S ⊙ W_mask S)      [T, d]      section 4.1.2, after MaskNet (arXiv 2102.07619)

A row is as long as the sample's longest sequence; where a shorter one has no event its part is zeros. Nothing is
padded: places are computed on the packed values. How many events the merged rows have together only their lengths
tell: where the host does not know them, or the model is compiled, merging waits for the device once a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mfu_kernels.jagged import row_of_each
from mfu_models.batch import EventSequence


@dataclass(frozen=True, slots=True)
class Alignment:
    """Merged rows: ``offsets`` [B+1], their T events, and where each sequence's events lie among them."""

    offsets: Tensor
    num_events: int
    max_length: int
    places: tuple[Tensor, ...]

    @staticmethod
    def of(sequences: Sequence[EventSequence]) -> "Alignment":
        """The last events of the sequences of a sample share a place, and so on back from there."""
        max_length = max(sequence.max_length for sequence in sequences)
        if len(sequences) == 1:
            offsets, num_events = sequences[0].offsets, sequences[0].item_ids.shape[0]
        else:
            lengths = torch.stack([sequence.offsets.diff() for sequence in sequences]).amax(0)
            offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            known = []
            if not torch.compiler.is_compiling():  # NumPy's arrays would be a CPU's tensors in a GPU's graph
                known = [sequence.host_lengths for sequence in sequences if sequence.host_lengths is not None]
            num_events = int(np.max(known, axis=0).sum() if len(known) == len(sequences) else offsets[-1])
        return Alignment(offsets, num_events, max_length, tuple(_places(s, offsets) for s in sequences))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Each sequence's values [T_i, e_i], side by side: [T, sum of e_i]."""
        return torch.cat(self._spread(parts), dim=-1)

    def latest(self, times_ms: Sequence[Tensor]) -> Tensor:
        """The time of the latest event at each place, [T], from each sequence's times [T_i]; it rises along a row."""
        return torch.stack(self._spread(times_ms)).amax(0)

    def _spread(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [
            part.new_zeros(self.num_events, *part.shape[1:]).index_copy(0, place, part)
            for part, place in zip(parts, self.places, strict=True)
        ]


def _places(sequence: EventSequence, offsets: Tensor) -> Tensor:
    """int64 [T_i]: an event stays as far from its row's end as it was."""
    num_events = sequence.item_ids.shape[0]
    shift = (offsets - sequence.offsets)[1:]
    index = torch.arange(num_events, device=offsets.device)
    return index + shift[row_of_each(sequence.offsets, num_events)]


class MaskNet(nn.Module):
    """W_lce (S ⊙ W_mask S): a sample's own mask on its merged events, then their compression: [T, k e] -> [T, d]."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.mask = nn.Linear(in_width, in_width)
        self.compress = nn.Linear(in_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """[T, k e] -> [T, d]."""
        compressed: Tensor = self.compress(x * self.mask(x))
        return compressed


def merged_lengths(lengths: Sequence[Sequence[int]]) -> list[int]:
    """Length of each sample's merged row, from each sequence's lengths."""
    return [max(row) for row in zip(*lengths, strict=True)]
