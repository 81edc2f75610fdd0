"""An op: its implementations by name, its cost, and the rule by which ``impl`` chooses.

``impl`` is one name for all ops, or that and other names for single ones: ``"auto,gdpa=reference,rms_norm=triton"``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from . import cost as _cost
from .cost import OpClass, OpCost
from .errors import UnsupportedImpl
from .limits import DTYPES, MAX_ROW_WIDTH
from .modes import compiling_ahead

Impl = Literal["auto", "reference", "triton"]
IMPLS: tuple[str, ...] = ("auto", "reference", "triton")
MIN_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Op:
    """One mathematical operation. ``cost`` takes the implementation's arguments and ``impl`` by keyword.

    ``proved_natively``: `mfubench kernels check` has passed on a GPU. Until then ``auto`` stays with the reference: an
    interpreter proves what a kernel says, not what a compiler makes of it. ``widths``: the least and the largest last
    dimension that the kernels take.
    """

    name: str
    kind: OpClass
    cost: Callable[..., OpCost]
    implementations: Mapping[str, Callable[..., torch.Tensor]]
    proved_natively: bool = False
    widths: tuple[int, int] = (1, MAX_ROW_WIDTH)

    def choose(self, impl: str, device: torch.device, *args: Any) -> str:
        """The implementation that ``impl`` means for this op on ``device``, and with these arguments.

        Raises:
            UnsupportedImpl: an unknown name, or an implementation that this op does not have or cannot run there.
        """
        impl = named_impls(impl).get(self.name, impl.partition(",")[0])
        if impl not in IMPLS:
            raise UnsupportedImpl(f"impl={impl!r} is unknown; allowed: {', '.join(IMPLS)}")
        if impl == "auto":
            on_cuda = device.type == "cuda"
            capable = torch.cuda.get_device_capability(device) >= MIN_CAPABILITY if on_cuda else compiling_ahead()
            proved = self.proved_natively and "triton" in self.implementations
            return "triton" if capable and proved and self._takes(args) else "reference"
        if impl not in self.implementations:
            have = ", ".join(sorted(self.implementations))
            raise UnsupportedImpl(f"{self.name} has no impl={impl!r} yet; it has: {have}; or use impl='auto'")
        if impl == "triton":
            _check_triton_runs(self.name, device)
        return impl

    def _takes(self, args: tuple[Any, ...]) -> bool:
        """Whether kernels are made for these dtypes, and the widths of those with as many dimensions as the first."""
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.is_floating_point()]
        least, most = self.widths
        return all(tensor.dtype in DTYPES for tensor in tensors) and all(
            least <= tensor.shape[-1] <= most for tensor in tensors if tensor.ndim == tensors[0].ndim
        )

    def run(self, impl: str, device: torch.device, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the chosen implementation and tell the observing pass, if there is one."""
        chosen = self.choose(impl, device, *args)
        function = self.implementations[chosen]
        observer = _cost.current_observer()
        if observer is None:
            return function(*args, **kwargs)
        observer.enter_op(self.name, self.kind, chosen, partial(self.cost, *args, impl=chosen, **kwargs))
        try:
            return function(*args, **kwargs)
        finally:
            observer.exit_op()


def named_impls(impl: str) -> dict[str, str]:
    """The ops that ``impl`` names, each with its own implementation.

    Raises:
        UnsupportedImpl: a part that is not ``op=implementation``.
    """
    if not isinstance(impl, str):
        raise UnsupportedImpl(f"impl is of type {type(impl).__name__}; allowed: a string, such as 'auto'")
    parts = impl.split(",")[1:]
    if not all("=" in part for part in parts):
        raise UnsupportedImpl(f"impl={impl!r}; allowed: one of {', '.join(IMPLS)}, then ,op=implementation for each op")
    return dict(part.split("=", 1) for part in parts)


def with_impl(impl: str, op: str, chosen: str) -> str:
    """``impl`` with another implementation for ``op``."""
    named = {**named_impls(impl), op: chosen}
    return ",".join([impl.partition(",")[0], *(f"{name}={value}" for name, value in sorted(named.items()))])


def _check_triton_runs(op: str, device: torch.device) -> None:
    """Kernels run on a CUDA device of sm_80 or later, on a CPU under Triton's interpreter, nowhere else."""
    if compiling_ahead():
        return
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CAPABILITY:
            has, need = ("sm_{}{}".format(*version) for version in (capability, MIN_CAPABILITY))
            raise UnsupportedImpl(f"{op}: impl='triton' needs {need} or later; {device} is {has}; use impl='reference'")
    elif device.type != "cpu":
        raise UnsupportedImpl(f"{op}: impl='triton' runs on cuda or cpu, not {device.type}; use impl='reference'")
    elif not torch.compiler.is_compiling() and not interpreting():  # dynamo cannot look into triton's settings
        raise UnsupportedImpl(
            f"{op}: impl='triton' on a CPU runs under Triton's interpreter only: set TRITON_INTERPRET=1 before Python "
            "starts, or use impl='reference'"
        )


def interpreting() -> bool:
    """Whether Triton's interpreter runs kernels in this process, on the host, in place of a compiler.

    Raises:
        UnsupportedImpl: triton is not installed.
    """
    try:
        from triton import knobs
    except ModuleNotFoundError as error:
        raise UnsupportedImpl("impl='triton' needs the package triton; install it, or use impl='reference'") from error
    return bool(knobs.runtime.interpret)
