"""Closed-form model FLOPs: 2 per multiply-add, matmul-like work only, true lengths, only pairs that a mask keeps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class FlopCount:
    """Model FLOPs of one batch in training, forward and backward; ``training_only`` of ``fwd`` inference leaves out."""

    fwd: int
    bwd: int
    training_only: int = 0

    @property
    def total(self) -> int:
        """Forward plus backward: a training step, which recomputes nothing here."""
        return self.fwd + self.bwd

    @property
    def inference(self) -> "FlopCount":
        """What the same batch needs outside training."""
        return FlopCount(self.fwd - self.training_only, 0)


def linear(rows: int, in_width: int, out_width: int) -> int:
    """Forward FLOPs of ``rows`` vectors through one matrix."""
    return 2 * rows * in_width * out_width


def mlp(rows: int, widths: Sequence[int]) -> int:
    """Forward FLOPs of ``rows`` vectors through the layers ``widths[0] -> widths[1] -> ...``."""
    return sum(linear(rows, a, b) for a, b in pairwise(widths))


def with_backward(work: Mapping[str, int], dense: int) -> FlopCount:
    """Forward and backward of components that a forward has.

    Every matrix product has two gradients, but the dense features need none: ``dense`` is the product with them.
    """
    fwd = sum(work.values())
    return FlopCount(fwd=fwd, bwd=2 * fwd - dense)


def check_lengths(lengths: Mapping[str, Sequence[int]], names: Iterable[str]) -> int:
    """Number of samples that ``lengths`` describes.

    Raises:
        ValueError: a sequence is missing, or the sequences disagree about the number of samples.
    """
    missing = [name for name in names if name not in lengths]
    counts = {len(rows) for rows in lengths.values()}
    if missing or len(counts) != 1:
        raise ValueError(f"lengths must give one row a sample for each sequence; missing {missing}, rows {counts}")
    return counts.pop()
