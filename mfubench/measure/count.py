"""The count pass: FLOPs and bytes of an eager step with its real sequence lengths, by module, direction and class."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from mfu_kernels.cost import OpClass, PassCost
from mfu_kernels.modes import watching_launches

from .classify import communicates, may_hide_flops, op_class
from .flops import dispatched_flops
from .masked import MaskedProducts
from .operators import OperatorMode, operator_name, tensors_of
from .scopes import OPTIMIZER, ROOT, Scope, ScopeTracker
from .traffic import dispatched_bytes, tensor_bytes

RECOMPUTE = "recompute"
UNKNOWN = "unknown"  # type of operands


class WorkKey(NamedTuple):
    """Where work was done: module, ``fwd``, ``bwd`` or ``recompute`` (a forward again), and class of operator."""

    module: str
    direction: str
    kind: OpClass


@dataclass(slots=True)
class Work:
    """FLOPs and bytes of a group of operators.

    ``model`` is useful, ``padded`` as if every row were the longest and no mask dropped a pair that is computed,
    ``hardware`` executed, ``recomputed`` the part of it that repeats earlier work, ``unwanted`` the part whose result
    nobody asked for, such as a first state's gradient; ``dtypes`` holds the hardware FLOPs by operand type, of complex
    numbers by that of their parts. An optimizer's products are hardware work alone: no sample needs them.
    """

    model: int = 0
    padded: int = 0
    hardware: int = 0
    recomputed: int = 0
    unwanted: int = 0
    bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, other: "Work", times: int = 1) -> None:
        """Add ``other`` to this, ``times`` times."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for dtype, flops in other.dtypes.items():
            self.dtypes[dtype] += times * flops

    def wider_than(self, itemsize: int) -> int:
        """The hardware FLOPs whose operands have more than ``itemsize`` bytes, as far as their type is known."""
        return sum(flops for name, flops in self.dtypes.items() if name != UNKNOWN and _itemsize(name) > itemsize)

    def divide(self, by: int) -> None:
        """Turn sums over ``by`` steps into their mean, rounded to whole FLOPs and bytes."""
        for name in _SUMMED:
            setattr(self, name, round(getattr(self, name) / by))
        for dtype, flops in self.dtypes.items():
            self.dtypes[dtype] = round(flops / by)


@dataclass(slots=True)
class Collective:
    """Calls of one operator that moves data between ranks, and what this rank gives or gets by them, in bytes."""

    calls: float = 0.0
    bytes: float = 0.0

    def add(self, other: "Collective", times: int = 1) -> None:
        """Add ``other`` to this, ``times`` times."""
        self.calls += times * other.calls
        self.bytes += times * other.bytes

    def divide(self, by: int) -> None:
        """Turn sums over ``by`` steps into their mean."""
        self.calls /= by
        self.bytes /= by


_SUMMED = ("model", "padded", "hardware", "recomputed", "unwanted", "bytes")


@dataclass(slots=True)
class Count:
    """What one step needs and executes: work by key, operators whose FLOPs are not known, implementations that ran.

    ``collectives``: what moves data between ranks, by operator; no other number here has its bytes. ``operators``: how
    many others were dispatched, by key. ``configs`` has the config of each kernel of ours at each key that
    it was launched with, and where that comes from. ``update_bytes`` is the least that the optimizers must
    move, which is less than what is counted where an update is many kernels; 0 where nobody looked.
    """

    work: dict[WorkKey, Work] = field(default_factory=lambda: defaultdict(Work))
    unknown_ops: set[str] = field(default_factory=set)
    impls: dict[str, str] = field(default_factory=dict)
    operators: Counter[WorkKey] = field(default_factory=Counter)
    collectives: dict[str, Collective] = field(default_factory=lambda: defaultdict(Collective))
    configs: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    update_bytes: int = 0

    def total(self, direction: str | None = None) -> Work:
        """All work, or that of one direction."""
        total = Work()
        for key, work in self.work.items():
            if direction in (None, key.direction):
                total.add(work)
        return total

    def dtypes(self) -> Counter[str]:
        """Hardware FLOPs by operand type, without the optimizers', which choose a type of their own."""
        found: Counter[str] = Counter()
        for key, work in self.work.items():
            if key.module != OPTIMIZER:
                found.update(work.dtypes)
        return found


class CountTracker(ScopeTracker):
    """A scope tracker that keeps a Count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, with_costs=True)
        self.count = Count()
        self._counted_backward: set[int] = set()
        self._masked = MaskedProducts()
        self._second_order: set[int] = set()  # passes whose gradients have gradients of their own, by torch's number

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks, op reports, every dispatched operator, and every launch of a kernel of ours."""
        with super().attached(), OperatorMode(self.book), watching_launches(self.launched):
            yield
        self._masked.discount()

    def launched(self, kernel: str, key: str, config: str, origin: str) -> None:
        """Note a launch."""
        self.count.configs[kernel, key] = (config, origin)

    def opened(self, scope: Scope) -> None:
        """Book an op's forward by its formula when it begins; one that is repeated needs nothing that is useful."""
        if scope.op is not None and scope.impl is not None and scope.cost is not None:
            self.count.impls[scope.op] = scope.impl
            cost = scope.cost.fwd
            if scope.recompute:
                repeated = PassCost(hardware=cost.hardware, bytes=cost.bytes, recomputed=cost.hardware)
                self._book_formula(scope, RECOMPUTE, repeated)
            else:
                self._book_formula(scope, "fwd", cost)

    def book(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """Book one dispatched operator on the scope that it runs in, or whose autograd node it runs for."""
        scope, direction = self._responsible()
        self.own_new_nodes(scope)
        name = operator_name(func)
        if communicates(name):
            sides = [sum(map(tensor_bytes, tensors_of(side))) for side in (*args, *kwargs.values(), out)]
            if not name.endswith("::wait_tensor"):  # which waits for what another has begun
                self.count.collectives[name].add(Collective(1, max(sides)))
            return
        recompute = direction == RECOMPUTE
        flops = dispatched_flops(func, args, kwargs, out)
        in_op = scope is not None and scope.op is not None
        in_kernel = in_op and scope is not None and scope.impl != "reference"  # whose formula has all that it executes
        if flops is None and not in_op and may_hide_flops(name):
            self.count.unknown_ops.add(name)
        work = Work()
        if flops is not None and not in_kernel:
            work.hardware = flops.hardware
            work.recomputed = flops.hardware if recompute else flops.recomputed
            work.dtypes[_operand_dtype(name, args, kwargs)] = flops.hardware
            work.unwanted = 0 if recompute else flops.unwanted
            if not in_op and not recompute and not _updates(scope):
                shared = scope.shared if scope else 1
                work.model = flops.model * shared
                work.padded = (flops.hardware - flops.recomputed - flops.unwanted) * shared  # with what a mask drops
        kind = scope.kind if scope is not None and scope.kind is not None else op_class(name)
        key = WorkKey(scope.module if scope else ROOT, direction, kind)
        self.count.operators[key] += 1
        booked = self.count.work[key]
        if in_op:
            self._masked.read((args, kwargs))
        else:
            work.model = self._masked.useful(name, args, kwargs, out, work.model, booked)
            work.bytes = dispatched_bytes(func, args, kwargs, out)
        booked.add(work)

    def _responsible(self) -> tuple[Scope | None, str]:
        """Scope and direction of what is being dispatched now."""
        node = torch._C._current_autograd_node()
        if node is None:
            return self.current, "fwd"
        if self.current is not None and self.current.recompute:
            return self.current, RECOMPUTE
        scope = self.owner_of_node(node)
        if scope is not None and scope.cost is not None and scope.index not in self._counted_backward:
            self._counted_backward.add(scope.index)
            self._book_formula(scope, "bwd", scope.cost.bwd)
        return scope, RECOMPUTE if self._repeats(node) else "bwd"

    def _repeats(self, node: Any) -> bool:
        """Whether what a node of the backward pass runs is a forward that checkpointing repeats.

        That wants gradients again, and is a node of Python's or saves its tensors anew. In a pass whose gradients have
        gradients of their own, as a penalty on them needs, every node's formula wants them.
        """
        if not torch.is_grad_enabled():
            return False
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
            return True
        backward_pass = torch._C._current_graph_task_id()
        if not isinstance(node, torch.autograd.function.BackwardCFunction):
            self._second_order.add(backward_pass)
        return backward_pass not in self._second_order

    def _book_formula(self, scope: Scope, direction: str, cost: PassCost) -> None:
        work = Work(bytes=cost.bytes)
        if not _updates(scope):
            work.model, work.padded = cost.model * scope.shared, cost.padded * scope.shared
        if scope.impl != "reference":  # a kernel's work is invisible to the dispatcher; the reference's is seen
            work.hardware, work.recomputed = cost.hardware, cost.recomputed
        self.count.work[WorkKey(scope.module, direction, scope.kind or "other")].add(work)


def _updates(scope: Scope | None) -> bool:
    """Whether what runs is an optimizer's own."""
    return scope is not None and scope.module == OPTIMIZER


# Whose first tensor is only added to the product; the factors after it may be narrower than it is.
_ADDEND_FIRST = ("aten::addmm", "aten::baddbmm", "aten::addbmm", "aten::addmv")


def _operand_dtype(name: str, args: Any, kwargs: dict[str, Any]) -> str:
    """The type of a product's factors: behind them come scales and statistics in fp32, offsets and seeds.

    Weights that are packed in an object do not show theirs, and what they are multiplied with is made like them.
    """
    if any(isinstance(value, torch.ScriptObject) for value in args) and name.partition("::")[0] == "quantized":
        return "float16" if "fp16" in name else "int8"
    tensors = tensors_of((args, kwargs))
    factors = tensors[1:] if name in _ADDEND_FIRST else tensors
    numbers = [tensor for tensor in factors if tensor.is_floating_point() or tensor.is_complex()]
    factors = numbers or factors  # integers have products too
    if not factors:
        return UNKNOWN
    dtype = factors[0].dtype
    return str(dtype.to_real() if dtype.is_complex else dtype).removeprefix("torch.")


def _itemsize(dtype: str) -> int:
    """Bytes of a number of the type that torch calls ``dtype``."""
    return int(getattr(torch, dtype).itemsize)


def count_step(model: nn.Module, step: Callable[[ScopeTracker], None]) -> Count:
    """Count one step: ``step(tracker)`` runs it eagerly and marks its phases with ``tracker.phase``."""
    tracker = CountTracker(model)
    with tracker.attached():
        step(tracker)
    return tracker.count


def by_module(work: Mapping[WorkKey, Work]) -> dict[str, dict[str, Work]]:
    """The same work by module, forward and backward; what is repeated belongs to the backward, which wants it."""
    table: dict[str, dict[str, Work]] = defaultdict(lambda: {"fwd": Work(), "bwd": Work()})
    for key, item in work.items():
        table[key.module]["fwd" if key.direction == "fwd" else "bwd"].add(item)
    return dict(table)
