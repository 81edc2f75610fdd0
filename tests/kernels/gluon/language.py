"""The part of Gluon that the kernels use, on a CPU: registers are tensors, engines act when they are waited for."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mfu_kernels.activations import ACTIVATIONS

from .memory import Barrier, Descriptor, Memory, Pointer, Register, Shared, claim, register
from .warpgroups import Fault, Schedule, merge

Names = dict[str, Any]


class Product:
    """A result of the tensor cores that nobody has waited for: good for nothing but another product, and waiting."""

    def __init__(self, value: Register, operands: Sequence[Shared]) -> None:
        self._value, self._operands, self.done = value, operands, False

    def finish(self, me: Any) -> None:
        """Its operands are read."""
        for operand in self._operands:
            operand.of(operand.memory.reading).sub_(1)
            operand.note_read(me)
        self.done = True

    @staticmethod
    def value_of(x: Any) -> Register:
        """Of a product or a register, for those who may see it."""
        return x._value if isinstance(x, Product) else x

    def __getattr__(self, name: str) -> Any:
        raise Fault(f"{name} of a product in flight")


class Program:
    """One program of a grid: what its kernel may call."""

    def __init__(self, number: int, place: tuple[int, ...], grid: tuple[int, ...], seed: int) -> None:
        self.number, self.place, self.grid = number, place, grid
        self.schedule = Schedule(seed)
        self.shared_bytes = 0

    def allocate_shared_memory(self, dtype: torch.dtype, shape: Sequence[int], layout: Any = None) -> Shared:
        """Room for a tensor, NaN or 0."""
        memory = Memory(dtype, torch.Size(shape).numel())
        self.shared_bytes += memory.values.numel() * dtype.itemsize
        return Shared(memory, torch.arange(memory.values.numel()).reshape(*shape), self.schedule)

    def init(self, place: Shared, count: int) -> None:
        """mbarrier.init"""
        place.memory.barriers[int(place.at.reshape(()))] = Barrier(self.schedule.new_actor(), int(count))

    def expect(self, place: Shared, size: int, pred: Any = True) -> None:
        """mbarrier.expect"""
        if pred:
            self.schedule.pause()
            place.barrier.expect(int(size), self.schedule.current.tick())

    def arrive(self, place: Shared, *, count: int = 1, pred: Any = True) -> None:
        """mbarrier.arrive"""
        if pred:
            self.schedule.pause()
            place.barrier.arrive(count, self.schedule.current.tick())

    def wait(self, place: Shared, phase: Any, pred: Any = True, deps: Any = ()) -> None:
        """mbarrier.wait: until the phase of this parity is over."""
        if not pred:
            return
        barrier, parity = place.barrier, int(phase) & 1
        self.schedule.pause()
        while barrier.phase & 1 == parity:
            if barrier.copies:
                barrier.land()
            self.schedule.pause(lambda: barrier.phase & 1 != parity or bool(barrier.copies))
        merge(self.schedule.current.clock, barrier.passed)

    def load_tile(
        self, tiles: Descriptor, place: Sequence[Any], barrier: Shared, slot: Shared, pred: Any = True
    ) -> None:
        """tma.async_load"""
        if pred:
            self.schedule.pause()
            if slot.shape != tiles.block_shape or slot.dtype != tiles.dtype:
                raise Fault(f"a block {tiles.block_shape} copied into {slot.shape}")
            slot.expect_copy(self.schedule.current)
            known = self.schedule.current.tick()
            barrier.barrier.copies.append((slot, tiles.block(place)))
            for actor, event in known.items():
                arriving = barrier.barrier.arriving
                arriving[actor] = max(arriving.get(actor, 0), event)

    def store_tile(self, tiles: Descriptor, place: Sequence[Any], slot: Shared) -> None:
        """tma.async_store"""
        self.schedule.pause()
        me = self.schedule.current
        tiles.write(place, slot.read(me, by_engine=True), self.number)
        slot.of(slot.memory.reading).add_(1)
        me.stores.append(slot)

    def store_wait(self, pendings: int) -> None:
        """tma.store_wait: until at most so many stores have yet to read their tiles."""
        me = self.schedule.current
        while len(me.stores) > int(pendings):
            slot = me.stores.pop(0)
            slot.of(slot.memory.reading).sub_(1)
            slot.note_read(me)

    def fence(self, *_: Any, **__: Any) -> None:
        """fence_async_shared: engines see what this warpgroup's threads wrote."""
        me = self.schedule.current
        for slot in me.unfenced:
            slot.of(slot.memory.unfenced).fill_(False)
        me.unfenced.clear()

    def mma(
        self, a: Any, b: Shared, acc: Any, *, use_acc: Any = True, is_async: bool = False, precision: Any = None
    ) -> Any:
        """warpgroup_mma"""
        self.schedule.pause()
        me = self.schedule.current
        if isinstance(a, Product):
            raise Fault("an operand in flight")
        if not isinstance(b, Shared):
            raise Fault("the right operand of a product lies in shared memory")
        operands = [x for x in (a, b) if isinstance(x, Shared)]
        left, right = (x.read(me, by_engine=True) if isinstance(x, Shared) else x for x in (a, b))
        total = Product.value_of(acc)
        m, n, k = left.shape[0], right.shape[1], left.shape[1]
        if left.dtype != right.dtype or left.dtype.itemsize != 2 or total.dtype != torch.float32:
            raise Fault(f"a product of {left.dtype} and {right.dtype} into {total.dtype}")
        if m % 64 or n % 8 or k % 16 or right.shape[0] != k or tuple(total.shape) != (m, n):
            raise Fault(f"a product of {list(left.shape)} and {list(right.shape)} into {list(total.shape)}")
        for operand in operands:
            operand.of(operand.memory.reading).add_(1)
        value = left.as_subclass(Tensor).float() @ right.as_subclass(Tensor).float()
        product = Product(register(value + total.as_subclass(Tensor) if use_acc else value), operands)
        me.products.append(product)
        if is_async:
            return product
        return self.mma_wait(0, [product])

    def mma_wait(self, num_outstanding: int = 0, deps: Sequence[Any] = ()) -> Any:
        """warpgroup_mma_wait: what is not done then stays a product in flight."""
        self.schedule.pause()
        me = self.schedule.current
        while len(me.products) > int(num_outstanding):
            me.products.pop(0).finish(me)
        values = [x._value if isinstance(x, Product) and x.done else x for x in deps]
        return values[0] if len(values) == 1 else tuple(values)

    def store(self, pointer: Pointer, value: Any, mask: Any = None, **_: Any) -> None:
        """store"""
        kept = pointer.kept(mask)
        values = torch.broadcast_to(torch.as_tensor(value), kept.shape).to(pointer.elements.dtype)
        at = pointer.at[kept].as_subclass(Tensor)
        claim(pointer.writers, at, self.number)
        pointer.elements[at] = values[kept].as_subclass(Tensor)

    def names(self) -> Names:
        """What a kernel calls of ``gl``, by name."""
        return {
            **_FUNCTIONS,
            "allocate_shared_memory": self.allocate_shared_memory,
            "store": self.store,
            "program_id": lambda axis: register(self.place[axis]),
            "num_programs": lambda axis: register(self.grid[axis]),
            "warp_specialize": lambda partitions, *_: self.schedule.fork(partitions),
        }


def _load(pointer: Pointer, mask: Any = None, other: Any = 0, **_: Any) -> Register:
    kept = pointer.kept(mask)
    values = pointer.elements[torch.where(kept, pointer.at, 0).as_subclass(Tensor)]
    return register(torch.where(kept, values, torch.as_tensor(other, dtype=values.dtype)))


def _two(function: Callable[..., Tensor]) -> Callable[[Any, Any], Register]:
    """An element-wise function of two values, either of which may be a number of Python's."""

    def apply(x: Any, y: Any, **_: Any) -> Register:
        like = next((v for v in (x, y) if isinstance(v, Tensor)), register(x))
        x, y = (v if isinstance(v, Tensor) else torch.tensor(v, dtype=like.dtype) for v in (x, y))
        return register(function(x, y))

    return apply


def _full(shape: Sequence[int], value: Any, dtype: torch.dtype, layout: Any = None) -> Register:
    return register(torch.full(tuple(shape), float(value) if dtype.is_floating_point else int(value), dtype=dtype))


def _where(mask: Any, x: Any, y: Any) -> Register:
    return register(torch.where(torch.as_tensor(mask), x, y))


def _check(condition: Any, message: str = "") -> None:
    if not condition:
        raise Fault(message or "a condition of the kernel's own")


_FUNCTIONS: Names = {
    "constexpr": lambda value: value,
    "static_range": range,
    "arange": lambda start, end, layout=None: register(torch.arange(start, end, dtype=torch.int32)),
    "zeros": lambda shape, dtype, layout=None: _full(shape, 0, dtype),
    "full": _full,
    "zeros_like": lambda x: register(torch.zeros_like(x)),
    "load": _load,
    "where": _where,
    "to_tensor": register,
    "convert_layout": lambda x, layout, **_: register(x),
    "cast": lambda x, dtype: register(x).to(dtype),
    "expand_dims": lambda x, axis: x.unsqueeze(axis),
    "permute": lambda x, order: x.permute(*order),
    "reshape": lambda x, shape: x.reshape(*shape),
    "join": lambda x, y: register(torch.stack([x, y], -1)),
    "split": lambda x: x.unbind(-1),
    "sum": lambda x, axis: x.sum(axis),
    "max": lambda x, axis: x.amax(axis),
    "maximum": _two(torch.maximum),
    "minimum": _two(torch.minimum),
    "cdiv": lambda x, y: (x + y - 1) // y,
    "static_assert": _check,
    "device_assert": _check,
    "assume": _check,
    "thread_barrier": lambda: None,
    "barrier": lambda **_: None,
    "multiple_of": lambda x, values: x,
    **{name: getattr(torch, name) for name in ("exp", "exp2", "log", "log2", "rsqrt", "sqrt", "abs", "cos", "sin")},
    "fma": lambda x, y, z: x * y + z,
    **{name: getattr(torch, name) for name in ("int32", "int64", "float16", "bfloat16", "float32", "int16", "int8")},
    "int1": torch.bool,
    **{
        name: lambda *_, **__: None
        for name in (
            "BlockedLayout",
            "DistributedLinearLayout",
            "SliceLayout",
            "DotOperandLayout",
            "NVMMADistributedLayout",
            "SwizzledSharedLayout",
        )
    },
    "NVMMASharedLayout": SimpleNamespace(get_default_for=lambda *_, **__: None),
}


def _weights_of(x: Register, name: str, dtype: torch.dtype) -> Register:
    return register(ACTIVATIONS[name](x.as_subclass(Tensor))).to(dtype)


def _activated_with_slope(x: Register, name: str, fast: bool) -> tuple[Register, Register]:
    with torch.enable_grad():
        leaf = x.detach().as_subclass(Tensor).requires_grad_()
        value = ACTIVATIONS[name](leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return register(value.detach()), register(slope)


def _weights_and_changes(x: Register, change: Register, name: str, dtype: torch.dtype) -> tuple[Register, Register]:
    value, slope = _activated_with_slope(x, name, True)
    return value.to(dtype), (change * slope).to(dtype)


ACTIVATED: Names = {
    "weights_of": _weights_of,
    "activated": lambda x, name, fast: _weights_of(x, name, torch.float32),
    "activated_with_slope": _activated_with_slope,
    "weights_and_changes": _weights_and_changes,
    "_one_instruction": lambda name, x: register(getattr(torch, name.split(".")[0])(x)),
}
"""The device functions of `mfu_kernels.activations_device`, which have inline assembly."""
