"""The calls of ops in a step, as they can be made again without it: what is tuned is what is launched there.

Of a tensor its layout stays, its whole numbers, and of other numbers their mean and deviation: that they are drawn anew
matters no more to a kernel's speed than which batch it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from mfu_kernels import OPS
from mfu_kernels.cost import OpClass, OpCost
from mfu_kernels.examples import Case, Draw, Examples, Inputs
from mfu_kernels.modes import compile_ahead
from mfu_kernels.precision import autocast_dtype, autocast_on_meta
from mfubench.measure.scopes import ScopeTracker
from mfubench.workload.ahead import step_without_numbers
from mfubench.workload.spec import WorkloadSpec

LOOKED_AT = 1 << 22  # numbers of a tensor for its mean and deviation
ALIGNED = 16  # bytes: Triton compiles other code for what is not


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor of whole numbers or truth values, which decide what a kernel does: kept as it is.

    In an array: a tensor that is sent to another process lies in memory that ends with the sender.
    """

    values: npt.NDArray[Any]

    def layout(self) -> tuple[Any, ...]:
        """What tells it from another that is launched in the same way."""
        return self.values.shape, self.values.dtype.str


@dataclass(frozen=True, slots=True)
class Floats:
    """A tensor of other numbers: its layout, whether it needs a gradient, and what it is drawn like.

    ``offset``: elements from an aligned address to its first one, or to that from the first of ``part_of``, the
    argument in whose memory it lies.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    needs_grad: bool
    mean: float
    std: float
    part_of: str | None = None

    def layout(self) -> tuple[Any, ...]:
        """What tells it from another that is launched in the same way."""
        return self.shape, self.stride, self.offset, self.dtype, self.needs_grad, self.part_of

    def draw(self, draw: Draw) -> Tensor:
        """One of these, without a gradient yet."""
        stored = draw.normal(self._extent, std=self.std, dtype=self.dtype)
        if self.mean:
            stored = stored + self.mean
        return stored.as_strided(self.shape, self.stride, self.offset)

    def laid_out(self, values: Tensor) -> Tensor:
        """``values`` in this layout, which a change of dtype may have lost."""
        if values.stride() == self.stride:
            return values
        return values.new_empty(self._extent).as_strided(self.shape, self.stride, self.offset).copy_(values)

    def within(self, whole: Tensor) -> Tensor:
        """The part of ``whole`` that it is."""
        return whole.as_strided(self.shape, self.stride, whole.storage_offset() + self.offset)

    @property
    def _extent(self) -> int:
        """Elements of the memory that it lies in."""
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return self.offset + (0 if 0 in self.shape else 1 + last)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an op's implementation from ``module``: its tensors by name, everything else, and autocast's dtype.

    An argument's name is its keyword or, as ``arg0``, its position.
    """

    op: str
    module: str
    tensors: Mapping[str, Whole | Floats]
    others: Mapping[str, Any]
    autocast: torch.dtype | None

    def __str__(self) -> str:
        return self.title

    @property
    def title(self) -> str:
        """The op's place in the model."""
        return f"{self.module} ({self.op})"

    @property
    def kind(self) -> tuple[Any, ...]:
        """What two calls share that launch the same on tensors of the same layout."""
        layouts = tuple((name, tensor.layout()) for name, tensor in self.tensors.items())
        return self.op, layouts, tuple(map(repr, self.others.items())), self.autocast

    @property
    def num_elements(self) -> int:
        """Of all its tensors of other than whole numbers."""
        return sum(torch.Size(tensor.shape).numel() for tensor in self.tensors.values() if isinstance(tensor, Floats))

    def computing(self, device: torch.device) -> AbstractContextManager[Any]:
        """Autocast on ``device`` as it was."""
        if device.type == "meta":
            return autocast_on_meta(self.autocast)
        return torch.autocast(device.type, self.autocast, enabled=self.autocast is not None)


class CallRecorder(ScopeTracker):
    """A scope tracker that keeps the calls of ops with kernels of ours that the module's forward makes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.calls: list[Call] = []

    def enter_op(self, name: str, kind: OpClass, impl: str, cost: partial[OpCost]) -> None:
        """Keep it, unless it is inside another op or runs without kernels."""
        inside = self.current is not None and self.current.op is not None
        super().enter_op(name, kind, impl, cost)
        if impl == "triton" and not inside and self.current is not None:
            self.calls.append(_call(name, self.current.module, cost))


def distinct(calls: Sequence[Call]) -> list[Call]:
    """The first call of each kind, the largest first; those of one module and op are told apart by a number."""
    kinds = {call.kind: call for call in reversed(calls)}
    found: list[Call] = []
    for call in sorted(kinds.values(), key=lambda call: -call.num_elements):
        same = sum(other.module.partition(" #")[0] == call.module and other.op == call.op for other in found)
        found.append(replace(call, module=f"{call.module} #{same + 1}") if same else call)
    return found


def examples_of_calls(calls: Sequence[Call]) -> Examples:
    """The calls as shapes of an op by their titles: what is tuned there is what the step launches."""
    return Examples(_again, {}, _make, {call.title: {"call": call} for call in calls})


def _call(op: str, module: str, cost: partial[OpCost]) -> Call:
    given = {f"arg{index}": value for index, value in enumerate(cost.args)}
    given |= {name: value for name, value in cost.keywords.items() if name != "impl"}
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in given.items() if name not in tensors}
    device = next(iter(tensors.values())).device
    seen = {name: _seen(name, tensor, tensors) for name, tensor in tensors.items()}
    return Call(op, module, seen, others, autocast_dtype(device))


def _seen(name: str, tensor: Tensor, beside: Mapping[str, Tensor]) -> Whole | Floats:
    if not tensor.is_floating_point():
        return Whole(_values(tensor))
    whole = _whole_of(name, tensor, beside)
    offset = _begin(tensor) - _begin(beside[whole]) if whole else _begin(tensor) % (ALIGNED // tensor.element_size())
    needs_grad = tensor.requires_grad and torch.is_grad_enabled()
    return Floats(tuple(tensor.shape), tensor.stride(), offset, tensor.dtype, needs_grad, *_moments(tensor), whole)


def _values(tensor: Tensor) -> npt.NDArray[Any]:
    if isinstance(tensor, FakeTensor):
        raise RuntimeError("whole numbers made of others, in a step without numbers: nothing is known of them")
    with unset_fake_temporarily():
        values: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return values


def _begin(tensor: Tensor) -> int:
    """The place of its first element in its memory."""
    return int(tensor.storage_offset())


def _whole_of(name: str, tensor: Tensor, beside: Mapping[str, Tensor]) -> str | None:
    """The argument of which ``tensor`` is a slice, as of a packed projection."""
    for other, candidate in beside.items():
        same = candidate.untyped_storage()._cdata == tensor.untyped_storage()._cdata
        if other != name and same and candidate.dtype == tensor.dtype and candidate.numel() > tensor.numel():
            return other
    return None


def _moments(tensor: Tensor) -> tuple[float, float]:
    """Mean and deviation of the first numbers; where there are none, or some are not finite, 0 and 1."""
    if isinstance(tensor, FakeTensor):
        return 0.0, 1.0
    per_row = max(1, tensor[0].numel()) if tensor.ndim and tensor.shape[0] else 1
    first = tensor.detach()[: max(1, LOOKED_AT // per_row)] if tensor.ndim else tensor.detach()
    if first.numel() < 2:
        return 0.0, 1.0
    std, mean = torch.std_mean(first.float())
    return (mean.item(), std.item()) if mean.isfinite() and std.isfinite() else (0.0, 1.0)


def _make(case: Case, draw: Draw) -> Inputs:
    """Its tensors on the draw's device, in their own dtypes; parts of others are made by the call itself."""
    call: Call = case["call"]
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {"call": call}
    for name, seen in call.tensors.items():
        if isinstance(seen, Whole):
            others[name] = torch.from_numpy(seen.values).to(draw.device)
        elif seen.part_of is None:
            (tensors if seen.needs_grad else others)[name] = seen.draw(draw)
    return Inputs(tensors, others)


def _again(*, call: Call, impl: str, **given: Any) -> Tensor:
    """The call with the tensors that `_make` made, or that have their values; under autocast with kernels alone.

    What a reference is held to, it computes in the dtypes that it is given.
    """
    for name, seen in call.tensors.items():
        if isinstance(seen, Floats) and seen.part_of is None:
            given[name] = seen.laid_out(given[name])
    for name, seen in call.tensors.items():
        if isinstance(seen, Floats) and seen.part_of is not None:
            given[name] = seen.within(given[seen.part_of])
    device = next(given[name] for name in call.tensors).device
    given |= call.others
    positional = [given.pop(f"arg{index}") for index in range(sum(name.startswith("arg") for name in given))]
    with call.computing(device) if impl == "triton" else nullcontext():
        return OPS[call.op].run(impl, device, *positional, **given)


def calls_without_numbers(spec: WorkloadSpec) -> list[Call]:
    """The `distinct` calls of a step as it is on a GPU, of which nothing is computed: no moments are known.

    Raises:
        BadInput: what `step_without_numbers` refuses.
    """
    found: list[Call] = []

    @contextmanager
    def inside(model: nn.Module) -> Iterator[None]:
        with recording(model) as calls:
            yield
        found.extend(calls)

    with compile_ahead(lambda compiled: None, lambda kernel, key: "none"):
        step_without_numbers(replace(spec, steps=1), inside)
    return distinct(found)


@contextmanager
def recording(model: nn.Module) -> Iterator[list[Call]]:
    """Inside, the calls that forwards of ``model`` make are added to the list that it hands out."""
    recorder = CallRecorder(model)
    with recorder.attached():
        yield recorder.calls
