"""A loader of the user's own, in make_batch's place: its batches as they come, and what a step's wait for them is.

Any iterable of batches is one, such as torch's DataLoader. What a model computes is measured on a few of its batches
that are at hand; how long steps wait for the loader, by feeding them as a training does.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from mfubench.errors import BadInput
from mfubench.measure.operators import tensors_of
from mfubench.user_code import kind_of, located

_END = object()  # no batch
OPTIONS = (  # of torch's DataLoader, whatever the size of its batches
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
    "generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order",
)  # fmt: skip


class Loader:
    """Batches of ``source``, which is begun again when it ends; ``name`` is whose it is, for messages."""

    def __init__(self, name: str, source: Iterable[Any]) -> None:
        self.name, self.source = name, source
        self.begun = 0
        self._batches: Iterator[Any] | None = None

    @property
    def takes_sizes(self) -> bool:
        """Whether there can be batches of any size: torch's DataLoader puts them together of rows."""
        return type(self.source) is DataLoader and self._batch_size is not None

    def of_size(self, batch_size: int) -> "Loader":
        """The same rows in batches that have ``batch_size`` all; itself where its batches come in one size.

        Raises:
            BadInput: it has fewer rows.
        """
        if not self.takes_sizes:
            return self
        source: Any = self.source
        named = {option: getattr(source, option) for option in OPTIONS} | {"drop_last": True}
        if not isinstance(source.dataset, IterableDataset):  # whose rows come as they come
            named["sampler"] = source.sampler
        rows = self._num_rows
        if rows is not None and rows < batch_size:
            raise BadInput(f"{self.name}: a batch of {batch_size} is asked for, and its loader has {rows} rows")
        return Loader(self.name, DataLoader(source.dataset, batch_size, **named))

    @property
    def _num_rows(self) -> int | None:
        """Of an epoch; None where nobody knows before."""
        try:
            return len(self.source.sampler)  # type: ignore[attr-defined]
        except TypeError:
            return None

    @property
    def ahead(self) -> int:
        """How many batches a DataLoader's workers have made before anybody asks for one."""
        return (getattr(self.source, "num_workers", 0) or 0) * (getattr(self.source, "prefetch_factor", 0) or 0)

    def draw(self) -> Any:
        """The next batch, on the host: a tuple of positional or a mapping of keyword arguments.

        Raises:
            BadInput: the loader raises, has none, or gives what is no batch.
        """
        try:
            batch = self._next()
        except BadInput:
            raise
        except (Exception, SystemExit) as error:
            raise BadInput(f"{self.name}: its loader raised {located(error)}") from error
        if isinstance(batch, list):  # as a DataLoader joins the parts of its rows
            return tuple(batch)
        if isinstance(batch, Mapping):  # one of its own kind may hide its tensors, or move itself for good
            return dict(batch)
        if not isinstance(batch, tuple):
            raise BadInput(
                f"{self.name}: its loader gave {kind_of(batch)}; a tuple of positional or a dict of keyword "
                "arguments of the module is needed"
            )
        return batch

    def end(self) -> None:
        """Let the loader's workers go; the next batch is the first of it begun again."""
        self._batches = None

    def _next(self) -> Any:
        if self._batches is not None and (batch := next(self._batches, _END)) is not _END:
            return batch
        self._batches = iter(self.source)
        self.begun += 1
        if (batch := next(self._batches, _END)) is not _END:
            return batch
        if self.begun == 1:
            size = f" of {self._batch_size} rows" if self._batch_size else ""
            raise BadInput(f"{self.name}: its loader has no batch{size}")
        raise BadInput(
            f"{self.name}: its loader has ended and gives nothing when it is begun again; return what begins anew each "
            "time, such as a torch.utils.data.DataLoader, or a class with an __iter__ that yields batches"
        )

    def rows_of(self, batch: Any) -> int:
        """The requests of ``batch``: the rows that all its tensors have, of a smaller batch as well.

        Where they differ, or are more than the loader's ``batch_size``, as many as this; without it those of the first.

        Raises:
            BadInput: nothing tells, or there are none.
        """
        rows, said = _rows(batch), self._batch_size
        found = next(iter(rows), None)
        if said is not None and (len(set(rows)) != 1 or rows[0] > said):
            found = said
        if found is None:
            raise BadInput(
                f"{self.name}: no tensor says how many rows its loader's batches have; give the loader a batch_size"
            )
        if found < 1:
            raise BadInput(f"{self.name}: its loader gave a batch without rows; nothing would be measured")
        return found

    def doubt(self, batch: Any) -> list[str]:
        """A warning where the requests of ``batch`` are a guess."""
        rows = _rows(batch)
        if self._batch_size is not None or len(set(rows)) < 2:
            return []
        return [
            f"the tensors of a batch have {', '.join(map(str, dict.fromkeys(rows)))} rows: it is taken to have as many "
            "requests as its first; a batch_size of the loader would tell"
        ]

    @property
    def _batch_size(self) -> int | None:
        said = getattr(self.source, "batch_size", None)
        return said if isinstance(said, int) else None


def _rows(batch: Any) -> list[int]:
    return [tensor.size(0) for tensor in tensors_of(batch) if tensor.dim()]


@dataclass(frozen=True, slots=True)
class Fed:
    """Steps that a loader fed: ms of each; of all, their requests, what the host's wait for batches took, and how often
    the loader was begun again.
    """

    timings_ms: list[float]
    requests: int
    drawing_ms: float
    begun_again: int
