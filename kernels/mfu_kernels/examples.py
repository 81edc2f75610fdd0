"""Inputs of an op by name: the cases that its kernels are checked on, and the shapes that they are timed on.

Each op with a triton implementation has an ``examples.py`` with one `Examples`. A case is a mapping of plain values,
such as ``{"lengths": (3, 0, 5), "d": 64, "std": 4.0}``, from which ``make`` draws the op's arguments on any device,
also on "meta", where nothing is stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Case = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Dense:
    """``rows`` rows of ``length`` each."""

    rows: int
    length: int

    def draw(self, generator: torch.Generator) -> list[int]:
        """The length of each row."""
        return [self.length] * self.rows


@dataclass(frozen=True, slots=True)
class Uniform:
    """``rows`` rows of lengths drawn from ``least`` to ``length``, both included."""

    rows: int
    length: int
    least: int = 1

    def draw(self, generator: torch.Generator) -> list[int]:
        """The length of each row."""
        return torch.randint(self.least, self.length + 1, (self.rows,), generator=generator).tolist()


EDGE_LENGTHS: tuple[tuple[int, ...], ...] = (
    (5, 0, 130, 1),
    (0, 64, 0, 63, 65, 0),
    (0, 0),
    (1,),
    (127, 129, 128, 0),
    (33, 257),
)
"""Rows that are empty first, in the middle and last, all empty, of one value, a block long and one more or less."""


CLICKS, IMPRESSIONS = Uniform(1024, 1024, least=731), Uniform(1024, 1024, least=898)
"""Rows of Kunlun large_plus's two towers: of a mean length as on synthetic logs, 878 and 961."""


@dataclass(frozen=True)
class Draw:
    """Draws tensors of one dtype on one device; the same seed gives the same numbers on every device.

    ``on_device``: the device draws its own numbers, which a host would take seconds for at the size that is timed.
    """

    dtype: torch.dtype
    device: torch.device
    seed: int = 0
    on_device: bool = False
    _generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self._generator.manual_seed(self.seed)

    @cached_property
    def _source(self) -> torch.Generator:
        """What numbers come from; lengths always come from the host."""
        return torch.Generator(self.device).manual_seed(self.seed) if self.on_device else self._generator

    def normal(self, *shape: int, std: float = 1.0, strided: bool = False, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers; ``strided``: every second slice of a larger tensor, as a view of fused projections is."""
        stored = (shape[0], 2, *shape[1:]) if strided else shape
        if self.device.type == "meta":
            whole = torch.empty(stored, dtype=dtype or self.dtype, device="meta")
        else:
            drawn = torch.randn(stored, generator=self._source, device=self._source.device)
            whole = drawn.mul_(std).to(self.device, dtype or self.dtype)
        return whole[:, 1] if strided else whole

    def lengths(self, spec: Sequence[int] | Dense | Uniform) -> list[int]:
        """The length of each row."""
        return list(spec) if isinstance(spec, Sequence) else spec.draw(self._generator)

    def offsets(self, lengths: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
        """[B+1], where each row begins and ends."""
        return torch.tensor([0, *lengths]).cumsum(0).to(self.device, dtype)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Arguments of one call: tensors that may need gradients, and everything else."""

    tensors: Mapping[str, Tensor]
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Examples:
    """How to call one op.

    Attributes:
        function: the public function.
        factors: for each key of a case the values that the check covers; the first of each is the plainest.
        make: draws the arguments of a case.
        shapes: named cases of real size, for compiling ahead and for timing.
    """

    function: Callable[..., Tensor]
    factors: Mapping[str, Sequence[Any]]
    make: Callable[[Case, Draw], Inputs]
    shapes: Mapping[str, Case]
