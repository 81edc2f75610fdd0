"""The input of every model of the zoo: a batch of impressions with jagged event histories, and its schema."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # a schema is read where torch is not wanted, such as the command line's help
    import torch
    from torch import Tensor

SequenceKind = Literal["engagement", "exposure"]


@dataclass(frozen=True, slots=True)
class Field:
    """A categorical feature with ids 0 .. vocab-1; id 0 means unknown."""

    name: str
    vocab: int


@dataclass(frozen=True, slots=True)
class SequenceField:
    """A named event sequence: what the user engaged with, or all that the user was shown."""

    name: str
    kind: SequenceKind


@dataclass(frozen=True, slots=True)
class Schema:
    """What a data source offers. Every event, and the candidate, has an item id and one id for each of ``sides``."""

    source: str
    dense: tuple[str, ...]
    sparse: tuple[Field, ...]
    item: Field
    sides: tuple[Field, ...]
    sequences: tuple[SequenceField, ...]
    target: str


@dataclass(frozen=True, slots=True)
class EventSequence:
    """Jagged events of one kind, oldest first in each sample; T is the sum of the B lengths, zero allowed.

    ``item_ids`` int64 [T], ``side_ids`` int64 [T, num_sides], ``times_ms`` int64 [T] (Unix time), ``offsets`` int64
    [B+1]; ``max_length`` is the longest length of this batch, known to the host so that no pass must wait for it.
    """

    item_ids: "Tensor"
    side_ids: "Tensor"
    times_ms: "Tensor"
    offsets: "Tensor"
    max_length: int

    def lengths(self) -> list[int]:
        """Length of each sample's sequence (waits for the device)."""
        return [int(n) for n in self.offsets.diff().tolist()]


@dataclass(frozen=True, slots=True)
class Batch:
    """B impressions: each has one candidate item, the user's histories strictly before it, and a 0/1 label.

    ``dense`` float32 [B, num_dense], ``sparse`` int64 [B, num_sparse] in the schema's order, ``candidate_items`` int64
    [B], ``candidate_sides`` int64 [B, num_sides], ``times_ms`` int64 [B], ``labels`` float32 [B].
    """

    dense: "Tensor"
    sparse: "Tensor"
    candidate_items: "Tensor"
    candidate_sides: "Tensor"
    times_ms: "Tensor"
    labels: "Tensor"
    sequences: Mapping[str, EventSequence]

    @property
    def num_samples(self) -> int:
        """B."""
        return int(self.labels.shape[0])

    def lengths(self) -> dict[str, list[int]]:
        """Each sequence's B lengths."""
        return {name: sequence.lengths() for name, sequence in self.sequences.items()}

    def to(self, device: "torch.device | str", *, non_blocking: bool = False) -> "Batch":
        """The same batch on ``device``."""

        def move(value: Any) -> Any:
            if isinstance(value, (EventSequence, Batch)):
                return type(value)(*(move(getattr(value, field.name)) for field in fields(value)))
            if isinstance(value, Mapping):
                return {key: move(item) for key, item in value.items()}
            return value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value

        moved: Batch = move(self)
        return moved
