"""What one call of an op costs, and how an op tells a counting or tracing pass that it runs.

FLOPs are 2 per multiply-add, matmul-like work only. Three numbers are never confused:

- ``model``: true lengths, only the pairs that a mask keeps, no gradient for an input that needs none, no recomputation;
- ``padded``: the same if every sequence were as long as the batch's longest;
- ``hardware``: what the implementation executes, padding, masked pairs and recomputed scores included.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

OpClass = Literal["gemm", "attention", "norm", "elementwise", "reduction", "embedding", "copy", "other"]
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PassCost:
    """Work of one pass, forward or backward, of one call. FLOPs, and bytes with each tensor moved once.

    ``recomputed`` is the part of ``hardware`` that repeats earlier work, such as scores that a backward makes again.
    """

    model: int = 0
    padded: int = 0
    hardware: int = 0
    bytes: int = 0
    recomputed: int = 0


@dataclass(frozen=True, slots=True)
class OpCost:
    """Forward and backward work of one call; ``bwd`` counts only gradients that the call's inputs need."""

    fwd: PassCost
    bwd: PassCost


class Observer(Protocol):
    """A measuring pass that wants to know which op runs. At most one observes at a time."""

    def enter_op(self, name: str, kind: OpClass, impl: str, cost: partial[OpCost]) -> None:
        """An op begins. ``cost`` reads sequence lengths, which waits for the device: call it outside timed passes.

        It is a `partial` of the arguments that the implementation has, and ``impl``.
        """

    def exit_op(self) -> None:
        """The op that began last has ended, also when it raised."""

    def enter_shared(self, num_samples: int) -> None:
        """Work begins that is executed once and serves ``num_samples`` samples."""

    def exit_shared(self) -> None:
        """That work has ended."""


_observer: Observer | None = None


def current_observer() -> Observer | None:
    """The pass that observes ops now, or None, which is the case whenever time is measured."""
    return _observer


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Report every op to ``observer`` inside this context."""
    global _observer
    if _observer is not None:
        raise RuntimeError("ops are observed already; passes must not be nested")
    _observer = observer
    try:
        yield
    finally:
        _observer = None


def once_for_batch(fn: Callable[..., R], *args: Any, num_samples: int) -> R:
    """Run ``fn(*args)``, whose result all ``num_samples`` samples of a batch share.

    Model FLOPs are per sample and must not depend on how samples are batched (each sample alone would pay for this
    work), so a counting pass multiplies its model FLOPs by ``num_samples``; hardware FLOPs stay what is executed.
    """
    observer = _observer
    if observer is None:
        return fn(*args)
    observer.enter_shared(num_samples)
    try:
        return fn(*args)
    finally:
        observer.exit_shared()
