"""A loader of the user's own, in make_batch's place: its batches as they come, and what a step's wait for them is.

Any iterable of batches is one, such as torch's DataLoader. What a model computes is measured on a few of its batches
that are at hand; how long steps wait for the loader, by feeding them as a training does.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mfubench.errors import BadInput
from mfubench.measure.operators import tensors_of
from mfubench.user_code import located


class Loader:
    """Batches of ``source``, which is begun again when it ends; ``name`` is whose it is, for messages."""

    def __init__(self, name: str, source: Iterable[Any]) -> None:
        self.name, self.source = name, source
        self.begun = 0
        self._batches: Iterator[Any] | None = None

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
        batch = tuple(batch) if isinstance(batch, list) else batch  # as a DataLoader joins the parts of its rows
        if not isinstance(batch, (tuple, Mapping)):
            raise BadInput(
                f"{self.name}: its loader gave a {type(batch).__name__}; a tuple of positional or a dict of keyword "
                "arguments of the module is needed"
            )
        return batch

    def end(self) -> None:
        """Let the loader's workers go; the next batch is the first of it begun again."""
        self._batches = None

    def _next(self) -> Any:
        if self._batches is not None:
            for batch in self._batches:
                return batch
        self._batches = iter(self.source)
        self.begun += 1
        for batch in self._batches:
            return batch
        if self.begun == 1:
            raise BadInput(f"{self.name}: its loader has no batch")
        raise BadInput(
            f"{self.name}: its loader has ended and gives nothing when it is begun again; return what begins anew each "
            "time, such as a torch.utils.data.DataLoader, or a class with an __iter__ that yields batches"
        )

    def rows_of(self, batch: Any) -> int:
        """The requests of ``batch``: the rows that all its tensors have, or else its loader's ``batch_size``.

        Without that the rows of its first tensor; where another dimension comes first, the loader has to say.

        Raises:
            BadInput: neither tells, or there are none.
        """
        rows = [tensor.size(0) for tensor in tensors_of(batch) if tensor.dim()]
        said = getattr(self.source, "batch_size", None)
        found = said if isinstance(said, int) and len(set(rows)) != 1 else next(iter(rows), None)
        if found is None:
            raise BadInput(
                f"{self.name}: no tensor says how many rows its loader's batches have; give the loader a batch_size"
            )
        if found < 1:
            raise BadInput(f"{self.name}: its loader gave a batch without rows; nothing would be measured")
        return found


@dataclass(frozen=True, slots=True)
class Fed:
    """Steps that a loader fed: ms of each; of all, their requests, what the host's wait for batches took, and how often
    the loader was begun again.
    """

    timings_ms: list[float]
    requests: int
    drawing_ms: float
    begun_again: int
