"""A Triton kernel with its space of configs, and which of them a launch takes: forced, locked, or the default."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from itertools import zip_longest
from typing import Any

import torch
import triton
from triton.language.target_info import current_target

from .lock import DEFAULT, Locked, key_text, locked_config, locked_configs, places, spelled
from .modes import Compiled, MetaParameters, ahead, forced, launch_watcher
from .registry import interpreting

Grid = Callable[[Mapping[str, Any]], tuple[int, ...]]
Form = tuple[Any, Callable[..., tuple[tuple[Any, ...], Mapping[str, Any]]]]
"""Another jitted function, and what makes its arguments and constants of those of the first."""
KERNELS: dict[str, "Kernel"] = {}
"""Every kernel whose module was imported, by name."""


def config(num_warps: int = 4, num_stages: int = 1, **tiles: int | bool) -> triton.Config:
    """A config: constants of the kernel by name, warps a program, and depth of its software pipeline."""
    return triton.Config(tiles, num_warps=num_warps, num_stages=num_stages)


def capability() -> int:
    """Of the GPU that kernels are compiled for, 90 for an sm_90; where there is none, as if it were one of those.

    A space has the same configs for all; which comes first may depend on it.
    """
    target = current_target()
    return target.arch if target is not None and isinstance(target.arch, int) else 90


def for_hopper(device: torch.device) -> bool:
    """Whether kernels on ``device`` may be forms in Gluon: compiled for sm_90, and compiled, not interpreted."""
    if device.type == "cuda":
        return _is_hopper(device)
    return not interpreting() and capability() == 90


@cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


# One rounding for a product and a sum is Triton's default up to 3.9 and not after; numbers were checked with it.
OPTIONS = {"enable_fp_fusion": True}


class Kernel:
    """A jitted function, the configs that it may run with, and the one that it takes where none was measured.

    ``space(key)`` lists the configs for a key, the default first: what tuning tries. A key holds what the best config
    depends on, such as the head dimension. A launch takes, in this order, what `forced_config` says, what the lock has
    for this GPU and key or for another GPU of its generation, and the default. Nothing is tuned behind the user's back.

    ``forms`` are other functions for the same work, each by the name of a constant that only its configs have.
    ``instead_of`` says what does its work on a GPU where none of its configs is locked, if anything (`takes_over`).
    """

    def __init__(
        self,
        function: Any,
        space: Callable[[MetaParameters], Sequence[triton.Config]],
        forms: Mapping[str, Form] | None = None,
        instead_of: str = "",
    ) -> None:
        self.function, self.space, self.forms, self.instead_of = function, space, forms or {}, instead_of
        self.name: str = function.fn.__name__
        self.module: str = function.fn.__module__
        if self.name in KERNELS:
            raise RuntimeError(f"two kernels are called {self.name}")
        KERNELS[self.name] = self

    def form_of(self, chosen: triton.Config) -> str:
        """The name of the form that runs with ``chosen``; empty for the function itself."""
        return next((name for name in self.forms if name in chosen.kwargs), "")

    def takes_over(self, key: MetaParameters, device: torch.device) -> bool:
        """Whether the kernel does its work on ``device``, not what it is ``instead_of``.

        It does where one of its configs is locked or asked for, and where nothing is timed: off a GPU.
        """
        return device.type != "cuda" or self._asked_for(key) is not None or self._locked(key, device) is not None

    def choose(self, key: MetaParameters, device: torch.device) -> triton.Config:
        """The config that a launch with ``key`` takes on ``device``."""
        return self._asked_for(key) or self._unforced(key, device)[0]

    def origin(self, key: MetaParameters, device: torch.device) -> str:
        """Where that config comes from, in words."""
        return "asked for" if self._asked_for(key) is not None else self._unforced(key, device)[1]

    def _asked_for(self, key: MetaParameters) -> triton.Config | None:
        asked: triton.Config | None = forced(self.name, lambda: self._in_turns(self.space(key)))
        return asked

    def _unforced(self, key: MetaParameters, device: torch.device) -> tuple[triton.Config, str]:
        """The config where none is asked for, and its origin."""
        chosen = places().chosen
        place = (self.name, device if device.type == "cuda" else capability(), *key.items())
        if place not in chosen:
            locked = self._locked(key, device)
            origin = DEFAULT if locked is None else f"locked on {locked.device}"
            chosen[place] = self.space(key)[0] if locked is None else config(**locked.config), origin
        return chosen[place]  # type: ignore[no-any-return]

    def _locked(self, key: MetaParameters, device: torch.device) -> Locked | None:
        if device.type != "cuda":
            return None
        target = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
        return locked_config(self.name, torch.cuda.get_device_name(device), target, key)

    def _in_turns(self, configs: Sequence[triton.Config]) -> list[triton.Config]:
        """The configs of all forms in turns, the default's first: few of them in this order are some of each form."""
        by_form: dict[str, list[triton.Config]] = {}
        for one in configs:
            by_form.setdefault(self.form_of(one), []).append(one)
        return [one for turn in zip_longest(*by_form.values()) for one in turn if one is not None]

    def launch(self, grid: Grid, device: torch.device, *args: Any, key: MetaParameters, **constants: Any) -> None:
        """Run on ``device`` with ``grid`` of the chosen config's constants; ``constants`` are the kernel's others."""
        sink, wanted = ahead(self.name, key)
        if sink is not None:
            waits = self.instead_of and self._asked_for(key) is None
            default = [] if waits else [self.choose(key, device)]
            locked = [config(**found.config) for found in locked_configs(self.name, f"sm_{capability()}", key)]
            taken = [*default, *locked]
            everything = [*self.space(key), *taken]
            for candidate in dict.fromkeys({"all": everything, "launched": taken, "none": []}[wanted]):
                compiled, size = self._compile(candidate, *args, **constants), grid(candidate.kwargs)
                is_default, is_locked = candidate in default, candidate in locked
                sink(Compiled(self.name, dict(key), candidate, is_default, is_locked, size, compiled))
            return
        with current(device):  # a space may ask what is compiled for
            chosen = self.choose(key, device)
            watcher = launch_watcher()
            if watcher is not None:
                watcher(self.name, key_text(key), spelled(chosen), self.origin(key, device))
            function, args, options = self._called(chosen, args, constants)
            function[grid(chosen.kwargs)](*args, **options)

    def _compile(self, chosen: triton.Config, *args: Any, **constants: Any) -> Any:
        """The CompiledKernel, or the exception of a config that does not compile: a fact about it, for the table."""
        try:
            function, args, options = self._called(chosen, args, constants)
            return function.warmup(*args, grid=(1,), **options)
        except Exception as error:
            return error

    def _called(
        self, chosen: triton.Config, args: tuple[Any, ...], constants: Mapping[str, Any]
    ) -> tuple[Any, tuple[Any, ...], Mapping[str, Any]]:
        """Which function a config runs, with which arguments, constants and options."""
        function, constants = self.function, {**constants, **chosen.kwargs}
        form = self.form_of(chosen)
        if form:
            function, adapt = self.forms[form]
            args, constants = adapt(*args, **constants)
        return function, args, {**constants, **_options(chosen)}


def _options(chosen: triton.Config) -> dict[str, Any]:
    """How the compiler is to treat a kernel: the same in every version of Triton."""
    return {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages, **OPTIONS}


def current(device: torch.device) -> Any:
    """Triton launches on the current CUDA device; tensors may lie on another."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(n: int, size: int) -> int:
    """How many pieces of ``size`` cover n; ``triton.cdiv`` is made for kernels, and takes a host 5 microseconds."""
    return -(-n // size)
