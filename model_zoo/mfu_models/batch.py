"""The input of every model of the zoo: a batch of impressions with jagged event histories, and its schema."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # a schema is read where torch is not wanted, such as the command line's help
    import torch
    from numpy import int64
    from numpy.typing import NDArray
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
    [B+1]; ``max_length`` is the longest length of this batch, known to the host so that no pass must wait for it, as
    may be all B of them, ``host_lengths``.
    """

    item_ids: "Tensor"
    side_ids: "Tensor"
    times_ms: "Tensor"
    offsets: "Tensor"
    max_length: int
    host_lengths: "NDArray[int64] | None" = field(default=None, repr=False, compare=False)

    def lengths(self) -> list[int]:
        """Length of each sample's sequence (waits for the device where the host does not know them)."""
        known = self.host_lengths
        return [int(n) for n in (self.offsets.diff() if known is None else known).tolist()]

    def repeat(self, times: int) -> "EventSequence":
        """Each row ``times`` times in succession: B rows become B * times."""
        import torch

        lengths = self.offsets.diff().repeat_interleave(times)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        begins = (self.offsets[:-1].repeat_interleave(times) - offsets[:-1]).repeat_interleave(lengths)
        index = torch.arange(begins.shape[0], device=begins.device) + begins
        events = (self.item_ids[index], self.side_ids[index], self.times_ms[index])
        known = None if self.host_lengths is None else self.host_lengths.repeat(times)
        return EventSequence(*events, offsets, self.max_length, known)


@dataclass(frozen=True, slots=True)
class Batch:
    """B requests of m ``num_candidates`` each: a candidate has features and a 0/1 label, a request its histories.

    With one candidate a request, a request is an impression. Histories lie strictly before the request's time. What
    belongs to candidates has B*m rows, the candidates of one request in succession.

    ``dense`` float32 [B*m, num_dense], ``sparse`` int64 [B*m, num_sparse] in the schema's order, ``candidate_items``
    int64 [B*m], ``candidate_sides`` int64 [B*m, num_sides], ``times_ms`` int64 [B], ``labels`` float32 [B*m].
    """

    dense: "Tensor"
    sparse: "Tensor"
    candidate_items: "Tensor"
    candidate_sides: "Tensor"
    times_ms: "Tensor"
    labels: "Tensor"
    sequences: Mapping[str, EventSequence]
    num_candidates: int = 1

    @property
    def num_requests(self) -> int:
        """B."""
        return int(self.times_ms.shape[0])

    @property
    def num_impressions(self) -> int:
        """B*m."""
        return int(self.labels.shape[0])

    def per_impression(self) -> "Batch":
        """The same impressions as requests of one candidate each: every history is repeated for each candidate."""
        times = self.num_candidates
        if times == 1:
            return self
        repeated = {name: sequence.repeat(times) for name, sequence in self.sequences.items()}
        return replace(self, times_ms=self.times_ms.repeat_interleave(times), sequences=repeated, num_candidates=1)

    def lengths(self) -> dict[str, list[int]]:
        """Each sequence's B lengths."""
        return {name: sequence.lengths() for name, sequence in self.sequences.items()}

    def to(self, device: "torch.device | str", *, non_blocking: bool = False) -> "Batch":
        """The same batch on ``device``."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in memory from which a GPU fetches it while the host goes on."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: "torch.Stream") -> None:
        """Keep the memory, once it is let go, until ``stream`` has done what it was told by then."""

        def recorded(tensor: "Tensor") -> "Tensor":
            tensor.record_stream(stream)
            return tensor

        self._with_tensors(recorded)

    def _with_tensors(self, change: "Callable[[Tensor], Tensor]") -> "Batch":
        def changed(value: Any) -> Any:
            if isinstance(value, (EventSequence, Batch)):
                return type(value)(*(changed(getattr(value, own.name)) for own in fields(value)))
            if isinstance(value, Mapping):
                return {key: changed(item) for key, item in value.items()}
            return change(value) if hasattr(value, "to") else value

        batch: Batch = changed(self)
        return batch
