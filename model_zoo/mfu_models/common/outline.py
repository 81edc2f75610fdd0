"""Modules without numbers: all that a model's shapes say, in no memory and little time."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FILLING = ("normal_", "uniform_", "kaiming_uniform_", "zeros_", "ones_", "zero_", "fill_", "constant_")


class WithoutNumbers(TorchFunctionMode):
    """Inside, empty tensors, as weights are at first, are on the device "meta", and nothing fills them.

    On "meta" alone torch fills them by its decompositions, for which it loads its compiler: seconds, for no number.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        elif getattr(func, "__name__", None) in _FILLING:
            return args[0] if args else options["tensor"]
        return func(*args, **options)
