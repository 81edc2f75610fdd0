"""The memory pass: what is alive at a step's peak, by kind and by the module that it belongs to.

Every storage that an operator of the step makes is booked on the scope that runs, and booked off when it dies. The
bytes are those that tensors ask for; an allocator's rounding and cache are not in them, and are reported beside them on
a GPU.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn

from .classify import op_class
from .operators import OperatorMode, dense_parts, operator_name, tensors_of
from .scopes import BACKWARD, DATA, OPTIMIZER, ROOT, Scope, ScopeTracker

BEFORE = "(before)"  # the step, when only parameters and optimizer state are there
KINDS = ("parameters", "gradients", "optimizer_state", "activations", "other")
MADE = ("activations", "other")  # kinds of which it matters what made them


class MemoryKey(NamedTuple):
    """What memory is: its module, its kind, and the class of the operator that made it, empty where none did.

    A parameter, its gradient and its optimizer state are themselves, whatever operator made them.
    """

    module: str
    kind: str
    made_by: str


@dataclass(slots=True)
class MemoryPeak:
    """Bytes alive at the peak: in all, by kind, by module, by both and maker; and the phase in which it was reached.

    ``kept_activations``: by module, what the forward and the loss made and the backward finds when it begins;
    ``kept_by_key`` the same by maker, too.
    """

    peak_bytes: int
    phase: str
    by_kind: dict[str, int]
    by_module: Counter[str] = field(default_factory=Counter)
    kept_activations: Counter[str] = field(default_factory=Counter)
    by_key: Counter[MemoryKey] = field(default_factory=Counter)
    kept_by_key: Counter[MemoryKey] = field(default_factory=Counter)


@dataclass(slots=True)
class _Storage:
    nbytes: int
    module: str
    kind: str
    made_by: str

    @property
    def key(self) -> MemoryKey:
        return MemoryKey(self.module, self.kind, self.made_by if self.kind in MADE else "")


class MemoryTracker(ScopeTracker):
    """A scope tracker that logs each storage's birth and death."""

    def __init__(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        super().__init__(model)
        self._storages: list[_Storage] = []
        self._alive: dict[int, int] = {}  # storage's address in C++ -> index
        self._log: list[tuple[int, int]] = []  # (index, +1 or -1)
        self._phases: list[str] = []
        self._watches: list[Any] = []  # for deaths; each holds this tracker, and with it the whole model
        owner_of_parameter = self._book_parameters()
        for optimizer in optimizers:
            for parameter, state in optimizer.state.items():
                for value in tensors_of(dict(state)):
                    self.book(value, owner_of_parameter.get(parameter, ROOT), "optimizer_state")

    def _book_parameters(self) -> dict[torch.Tensor, str]:
        owners: dict[torch.Tensor, str] = {}
        for module, name in self.names.items():
            for tensor in module.parameters(recurse=False):
                owners.setdefault(tensor, name)
                self.book(tensor, name, "parameters")
                if tensor.grad is not None:  # which no optimizer takes away
                    self.book(tensor.grad, name, "gradients")
            for buffer in module.buffers(recurse=False):
                self.book(buffer, name, "other")
        devices = {parameter.device for parameter in owners}
        for module, name in self.names.items():
            for held in _plain_attributes(module):
                if not devices or held.device in devices:
                    self.book(held, name, "other")
        return owners

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks, op reports, and every storage that is made."""
        with super().attached(), OperatorMode(self._made):
            yield
            self._mark_gradients()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase; when the backward ends, the gradients are known by name."""
        with super().phase(name):
            yield
        if name == BACKWARD:
            self._mark_gradients()

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """Book what an operator made; what only looks at an input's storage, such as a view, is no new memory."""
        given = {part.untyped_storage()._cdata for tensor in tensors_of((args, kwargs)) for part in dense_parts(tensor)}
        for tensor in tensors_of(out):
            if not all(part.untyped_storage()._cdata in given for part in dense_parts(tensor)):
                scope = self._owner()
                maker = (scope.kind if scope else None) or op_class(operator_name(func))
                self.book(tensor, scope.module if scope else ROOT, self._kind(), maker)

    def book(self, tensor: torch.Tensor, module: str, kind: str, made_by: str = "") -> None:
        """Note the storages of ``tensor``, unless they are known already."""
        for part in dense_parts(tensor):
            storage = part.untyped_storage()
            if storage._cdata in self._alive or storage.nbytes() == 0:
                continue
            index = len(self._storages)
            self._storages.append(_Storage(storage.nbytes(), module, kind, made_by))
            self._alive[storage._cdata] = index
            self._note(index, +1)
            watch = weakref.finalize(storage, self._died, storage._cdata, index)
            watch.atexit = False
            self._watches.append(watch)

    def stop(self) -> None:
        """Watch for no more deaths, so that the model can die."""
        for watch in self._watches:
            watch.detach()
        self._watches.clear()

    def _died(self, address: int, index: int) -> None:
        if self._alive.get(address) == index:
            del self._alive[address]
        self._note(index, -1)

    def _note(self, index: int, sign: int) -> None:
        self._log.append((index, sign))
        self._phases.append(self.stack[0].module if self.stack else BEFORE)

    def _owner(self) -> Scope | None:
        node = torch._C._current_autograd_node()
        if node is None or (self.current is not None and self.current.recompute):
            return self.current
        return self.owner_of_node(node)

    def _kind(self) -> str:
        if torch._C._current_autograd_node() is not None:
            return "other"
        phase = self.stack[0].module if self.stack else ""
        return "other" if phase in (DATA, OPTIMIZER, BACKWARD, "") else "activations"

    def _mark_gradients(self) -> None:
        for module, name in self.names.items():
            for parameter in module.parameters(recurse=False):
                for part in dense_parts(parameter.grad) if parameter.grad is not None else ():
                    index = self._alive.get(part.untyped_storage()._cdata)
                    if index is not None:
                        self._storages[index].kind, self._storages[index].module = "gradients", name

    def peak(self) -> MemoryPeak:
        """What was alive when the most was."""
        by_kind, by_module, by_key = dict.fromkeys(KINDS, 0), Counter[str](), Counter[MemoryKey]()
        live = list(accumulate(sign * self._storages[index].nbytes for index, sign in self._log))
        if not live:
            return MemoryPeak(0, BEFORE, by_kind, by_module)
        top = max(range(len(live)), key=live.__getitem__)
        for index, sign in self._log[: top + 1]:
            storage = self._storages[index]
            by_kind[storage.kind] += sign * storage.nbytes
            by_module[storage.module] += sign * storage.nbytes
            by_key[storage.key] += sign * storage.nbytes
        kept_by_key, kept = self._kept(), Counter[str]()
        for key, nbytes in kept_by_key.items():
            kept[key.module] += nbytes
        return MemoryPeak(live[top], self._phases[top], by_kind, by_module, kept, by_key, kept_by_key)

    def _kept(self) -> Counter[MemoryKey]:
        kept = Counter[MemoryKey]()
        for (index, sign), phase in zip(self._log, self._phases, strict=True):
            if phase == BACKWARD:
                break
            storage = self._storages[index]
            if storage.kind == "activations":
                kept[storage.key] += sign * storage.nbytes
        return kept if BACKWARD in self._phases else Counter[MemoryKey]()


def _plain_attributes(module: nn.Module) -> Iterator[torch.Tensor]:
    """The tensors that a module keeps as they are, such as a graph's adjacency, or in a list, a tuple or a dict."""
    for value in vars(module).values():
        held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        yield from (each for each in held if isinstance(each, torch.Tensor))


def peak_of_step(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step: Callable[[ScopeTracker], None],
    held: Iterable[torch.Tensor] = (),
) -> MemoryPeak:
    """Peak of one step: ``step(tracker)`` runs it and marks its phases with ``tracker.phase``.

    ``held``: what is there all the time beside the model and its optimizers, such as a batch.
    """
    tracker = MemoryTracker(model, optimizers)
    for tensor in held:
        tracker.book(tensor, DATA, "other")
    try:
        with tracker.attached():
            step(tracker)
    finally:
        tracker.stop()
    return tracker.peak()
