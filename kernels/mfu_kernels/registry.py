"""An op: its implementations by name, its cost, and the rule by which ``impl`` chooses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from . import cost as _cost
from .cost import OpClass, OpCost
from .errors import UnsupportedImpl

Impl = Literal["auto", "reference", "triton"]
IMPLS: tuple[str, ...] = ("auto", "reference", "triton")
MIN_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True)
class Op:
    """One mathematical operation. ``cost`` takes the implementation's arguments and ``impl`` by keyword."""

    name: str
    kind: OpClass
    cost: Callable[..., OpCost]
    implementations: Mapping[str, Callable[..., torch.Tensor]]

    def choose(self, impl: str, device: torch.device) -> str:
        """The implementation that ``impl`` means on ``device``.

        Raises:
            UnsupportedImpl: an unknown name, or an implementation that this op does not have or cannot run there.
        """
        if impl not in IMPLS:
            raise UnsupportedImpl(f"impl={impl!r} is unknown; allowed: {', '.join(IMPLS)}")
        if impl == "auto":
            capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
            return "triton" if capable and "triton" in self.implementations else "reference"
        if impl not in self.implementations:
            have = ", ".join(sorted(self.implementations))
            raise UnsupportedImpl(f"{self.name} has no impl={impl!r} yet; it has: {have}; or use impl='auto'")
        return impl

    def run(self, impl: str, device: torch.device, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the chosen implementation and tell the observing pass, if there is one."""
        chosen = self.choose(impl, device)
        function = self.implementations[chosen]
        observer = _cost.current_observer()
        if observer is None:
            return function(*args, **kwargs)
        observer.enter_op(self.name, self.kind, chosen, partial(self.cost, *args, impl=chosen, **kwargs))
        try:
            return function(*args, **kwargs)
        finally:
            observer.exit_op()
