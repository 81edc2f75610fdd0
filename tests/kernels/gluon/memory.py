"""Shared memory that knows who may read and write it, barriers with phases, and pointers into tensors."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .warpgroups import Clock, Fault, Schedule, Warpgroup, merge

MOST_SHARED = 232_448  # bytes a program may have on sm_90


class Register(torch.Tensor):
    """A value of a kernel, a scalar too. Nothing that happens to it changes another name's value."""

    __iadd__ = torch.Tensor.__add__
    __isub__ = torch.Tensor.__sub__
    __imul__ = torch.Tensor.__mul__
    __iand__ = torch.Tensor.__and__
    __ior__ = torch.Tensor.__or__
    __ixor__ = torch.Tensor.__xor__
    __ifloordiv__ = torch.Tensor.__floordiv__
    __imod__ = torch.Tensor.__mod__
    __ilshift__ = torch.Tensor.__lshift__
    __irshift__ = torch.Tensor.__rshift__
    __itruediv__ = torch.Tensor.__truediv__

    type = SimpleNamespace(layout=None)  # layouts are not emulated

    def to(self, dtype: torch.dtype, bitcast: bool = False) -> "Register":  # type: ignore[override]
        """The value in another dtype, or its bits."""
        return self.view(dtype) if bitcast else super().to(dtype)

    def split(self) -> Any:  # type: ignore[override]
        """The two halves of the last dimension."""
        return self.unbind(-1)

    def trans(self, *order: int) -> Any:
        """Dimensions in another order."""
        return self.permute(order or (1, 0))


def register(value: Any) -> Register:
    """``value`` as a kernel has it: Python's integers as int32 where they fit, its floats as fp32."""
    if isinstance(value, Tensor):
        return value.as_subclass(Register)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float32).as_subclass(Register)
    wide = torch.int32 if -(2**31) <= value < 2**31 else torch.int64
    return torch.tensor(value, dtype=wide).as_subclass(Register)


class Device:
    """Which program of a launch wrote which element of a tensor: no two may, but by TMA the same values."""

    def __init__(self) -> None:
        self._writers: dict[int, Tensor] = {}

    def elements(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """All that the storage of ``tensor`` holds, flat, and who wrote each."""
        storage = tensor.untyped_storage()
        elements = torch.empty(0, dtype=tensor.dtype).set_(storage)
        writers = self._writers.setdefault(storage.data_ptr(), torch.zeros(elements.numel(), dtype=torch.int64))
        return elements, writers


def claim(writers: Tensor, at: Any, program: int, changed: Any = True) -> None:
    """``program`` writes there; who writes what is there already, is in nobody's way."""
    before = writers[at]
    if ((before != 0) & (before != program) & changed).any():
        raise Fault("two programs write the same place")
    writers[at] = program


class Pointer:
    """Addresses in one tensor's memory, in elements."""

    def __init__(self, elements: Tensor, writers: Tensor, at: Any) -> None:
        self.elements, self.writers, self.at = elements, writers, at
        self.dtype = SimpleNamespace(element_ty=elements.dtype)

    @classmethod
    def to(cls, tensor: Tensor, device: Device) -> "Pointer":
        """To the first element of ``tensor``, in all of its storage."""
        return cls(*device.elements(tensor), register(tensor.storage_offset()).to(torch.int64))

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.elements, self.writers, self.at + offset)

    def __getitem__(self, index: Any) -> "Pointer":
        return Pointer(self.elements, self.writers, self.at[index])

    def kept(self, mask: Any) -> Tensor:
        """Where the mask holds; an address out of bounds there is a fault."""
        mask = torch.ones_like(self.at, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
        at, mask = torch.broadcast_tensors(self.at, mask)
        self.at = at
        wrong = mask & ((at < 0) | (at >= self.elements.numel()))
        if wrong.any():
            raise Fault(f"address {int(at[wrong].flatten()[0])} of {self.elements.numel()} elements")
        return mask


class Descriptor:
    """A tensor in blocks, as TMA sees it."""

    def __init__(self, host: Any, device: Device) -> None:
        self.tensor, self.writers = (
            torch.as_strided(whole, host.shape, host.strides, host.base.storage_offset())
            for whole in device.elements(host.base)
        )
        self.block_shape = list(host.block_shape)
        self.dtype = host.base.dtype

    def _parts(self, place: Sequence[Any]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Of the tensor and of a block at ``place``: what both have."""
        here, there = [], []
        for first, size, length in zip(map(int, place), self.block_shape, self.tensor.shape, strict=True):
            low, high = max(first, 0), max(min(first + size, length), max(first, 0))
            low = min(low, high)
            here.append(slice(low, high))
            there.append(slice(low - first, high - first))
        return tuple(here), tuple(there)

    def block(self, place: Sequence[Any]) -> Tensor:
        """The block at ``place``, zeros beyond the tensor."""
        here, there = self._parts(place)
        block = torch.zeros(self.block_shape, dtype=self.dtype)
        block[there] = self.tensor[here]
        return block

    def write(self, place: Sequence[Any], block: Tensor, program: int) -> None:
        """The reverse; nothing is written beyond the tensor."""
        here, there = self._parts(place)
        values = block.reshape(self.block_shape)[there]
        claim(self.writers, here, program, self.tensor[here] != values)
        self.tensor[here] = values


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes have landed."""

    def __init__(self, actor: int, count: int) -> None:
        self.actor, self.count = actor, count
        self.arrived, self.due, self.phase, self.landed = 0, 0, 0, 0
        self.copies: list[tuple[Shared, Tensor]] = []
        self.arriving: Clock = {}
        self.passed: Clock = {}

    def expect(self, size: int, known: Clock) -> None:
        """Arrive, and let the phase last until ``size`` more bytes have landed."""
        self.due += size
        self.arrive(1, known)

    def arrive(self, count: int, known: Clock) -> None:
        """``count`` of those that the phase waits for are there."""
        self.arrived += count
        if self.arrived > self.count:
            raise Fault(f"{self.arrived} arrivals at a barrier of {self.count}")
        merge(self.arriving, known)
        self._end_phase()

    def land(self) -> None:
        """Let the oldest copy reach its place."""
        place, block = self.copies.pop(0)
        self.landed += 1
        place.land(block, self.actor, self.landed)
        self.due -= block.numel() * block.element_size()
        if self.due < 0:
            raise Fault("more bytes landed at a barrier than it expects")
        merge(self.arriving, {self.actor: self.landed})
        self._end_phase()

    def _end_phase(self) -> None:
        if self.arrived == self.count and not self.due:
            self.arrived, self.phase = 0, self.phase + 1
            merge(self.passed, self.arriving)


class Memory:
    """An allocation, element by element: values, who wrote and read them last, and what is in flight."""

    def __init__(self, dtype: torch.dtype, size: int) -> None:
        fill = float("nan") if dtype.is_floating_point else 0
        self.values = torch.full((size,), fill, dtype=dtype)
        self.writer, self.written = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
        self.readers: dict[int, Tensor] = {}
        self.reading = torch.zeros(size, dtype=torch.int64)
        self.landing, self.unfenced = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
        self.barriers: dict[int, Barrier] = {}


class Shared:
    """A view of an allocation: ``at`` has the place of each of its elements, itself a view of all places in turn."""

    def __init__(self, memory: Memory, at: Tensor, schedule: Schedule) -> None:
        self.memory, self.at, self.schedule = memory, at, schedule
        self.shape, self.numel, self.dtype = list(at.shape), at.numel(), memory.values.dtype
        self.rank = at.dim()

    def of(self, array: Tensor) -> Tensor:
        """The elements of an array of the memory's that are here, as a view."""
        return array.as_strided(self.at.shape, self.at.stride(), self.at.storage_offset())

    def _view(self, at: Tensor) -> "Shared":
        return Shared(self.memory, at, self.schedule)

    def index(self, index: Any) -> "Shared":
        """One of the first dimension."""
        if not 0 <= int(index) < self.shape[0]:
            raise Fault(f"index {int(index)} of {self.shape[0]}")
        return self._view(self.at[int(index)])

    def slice(self, start: int, length: int, dim: int = 0) -> "Shared":
        """``length`` of a dimension from ``start`` on."""
        return self._view(self.at.narrow(dim, start, length))

    def reshape(self, shape: Sequence[int]) -> "Shared":
        """The same elements in another shape."""
        return self._view(self.at.view(*shape))

    def permute(self, order: Sequence[int]) -> "Shared":
        """The same elements, dimensions in another order."""
        return self._view(self.at.permute(*order))

    @property
    def barrier(self) -> Barrier:
        """The barrier of a view of one element."""
        place = int(self.at.reshape(()))
        if place not in self.memory.barriers:
            raise Fault("a barrier that was not initialised")
        return self.memory.barriers[place]

    def load(self, layout: Any = None) -> Register:
        """The elements, read by the warpgroup's own threads."""
        self.schedule.pause()
        me = self.schedule.current
        values = self.read(me, by_engine=False)
        self.note_read(me)
        return register(values)

    def store(self, value: Tensor) -> None:
        """Written by the warpgroup's own threads; engines see it after a fence."""
        self.schedule.pause()
        me, memory = self.schedule.current, self.memory
        if list(value.shape) != self.shape or value.dtype != self.dtype:
            raise Fault(f"{value.dtype} {list(value.shape)} stored where {self.dtype} {self.shape} is")
        self.check_writable(me)
        self.of(memory.values).copy_(value.as_subclass(Tensor))
        self.of(memory.writer).fill_(me.actor)
        self.of(memory.written).fill_(me.clock[me.actor])
        self.of(memory.unfenced).fill_(True)
        me.unfenced.append(self)

    def read(self, me: Warpgroup, by_engine: bool) -> Tensor:
        """The values, if they are there for ``me`` to be read, or for an engine on its behalf."""
        memory = self.memory
        if self.of(memory.landing).any():
            raise Fault("read while a copy is on its way there")
        if by_engine and self.of(memory.unfenced).any():
            raise Fault("an engine reads what threads wrote, without a fence")
        if not self.of(memory.writer).all():
            raise Fault("read before anything was written")
        if not self._written_before(me):
            raise Fault("race: read what no barrier says is written")
        return self.of(memory.values).clone()

    def _written_before(self, me: Warpgroup) -> bool:
        """Whether ``me`` knows of all that was written here."""
        known = torch.tensor([me.clock.get(actor, 0) for actor in range(self.schedule.actors + 1)])
        memory = self.memory
        return bool((self.of(memory.written) <= known[self.of(memory.writer)]).all())

    def note_read(self, me: Warpgroup) -> None:
        """``me`` has read it, now."""
        readers = self.memory.readers.setdefault(me.actor, torch.zeros_like(self.memory.written))
        self.of(readers).fill_(me.clock[me.actor])

    def check_writable(self, me: Warpgroup) -> None:
        """Raise unless everybody is known to be done with it."""
        memory = self.memory
        if self.of(memory.reading).any() or self.of(memory.landing).any():
            raise Fault("overwritten while an engine reads or writes there")
        for actor, events in memory.readers.items():
            if int(self.of(events).max()) > me.clock.get(actor, 0):
                raise Fault("race: overwrote what no barrier says is read")
        if not self._written_before(me):
            raise Fault("race: overwrote what no barrier says is written")

    def expect_copy(self, me: Warpgroup) -> None:
        """A copy is on its way."""
        self.check_writable(me)
        self.of(self.memory.landing).fill_(True)

    def land(self, block: Tensor, actor: int, event: int) -> None:
        """The copy is there; whoever waits for its barrier knows."""
        memory = self.memory
        self.of(memory.values).copy_(block.reshape(self.at.shape))
        self.of(memory.writer).fill_(actor)
        self.of(memory.written).fill_(event)
        self.of(memory.landing).fill_(False)
        self.of(memory.unfenced).fill_(False)
