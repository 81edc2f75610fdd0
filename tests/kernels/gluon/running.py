"""A Gluon function that is launched as Triton launches it, on tensors of the CPU."""

import inspect
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import triton.language
from torch import Tensor
from triton import knobs
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from mfu_kernels.launching import Kernel
from mfu_kernels.modes import forced_config

from .language import ACTIVATED, Names, Program
from .memory import MOST_SHARED, Descriptor, Device, Pointer, register
from .warpgroups import Fault

_LAUNCH = {"num_warps", "num_stages", "maxnreg", "enable_fp_fusion"}


class _Language(SimpleNamespace):
    """A module of Gluon's; what it lacks here is an error of the emulator's."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the emulator does not know {name}; add it to tests/kernels/gluon/language.py")


class Emulated:
    """``function[grid](*args, **options)``, as a jitted function is launched; ``seed`` draws who goes when."""

    def __init__(self, function: Any, seed: int = 0) -> None:
        self.function, self.seed = function, seed

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self._launch(grid, args, options)

    def _launch(self, grid: tuple[int, ...], args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        options = {name: value for name, value in options.items() if name not in _LAUNCH}
        values = dict(inspect.signature(self.function.fn).bind(*args, **options).arguments)
        constants = {p.name for p in self.function.params if p.is_constexpr}
        device = Device()
        values = {name: x if name in constants else _argument(x, device) for name, x in values.items()}
        places = list(enumerate(itertools.product(*(range(n) for n in grid)), start=1))
        random.Random(self.seed).shuffle(places)
        for number, place in places:
            program = Program(number, place, tuple(grid), self.seed + number)
            _Source(program)[self.function.fn](**values)
            program.schedule.current.check_finished()
            if program.shared_bytes > MOST_SHARED:
                raise Fault(f"{program.shared_bytes} bytes of shared memory")


@contextmanager
def emulated(kernel: Kernel, form: str, seed: int = 0, choice: int = 0) -> Iterator[list[Any]]:
    """Inside, ``kernel`` takes the ``choice``-th config of ``form``, if the key's space has one, and it is emulated.

    Host functions are told that nothing is interpreted, as on a GPU; other kernels run as the process runs them. Yields
    a list of the configs that launches took.
    """
    taken: list[Any] = []
    function, adapt = kernel.forms[form]

    def choose(name: str, configs: Any) -> Any:
        own = [c for c in configs if form in c.kwargs] if name == kernel.name else []
        if own:
            taken.append(own[choice % len(own)])
        return taken[-1] if own else None

    before, kernel.forms = kernel.forms, {**kernel.forms, form: (Emulated(function, seed), adapt)}
    try:
        with forced_config(choose), knobs.runtime.scope():
            knobs.runtime.interpret = False
            yield taken
    finally:
        kernel.forms = before


def _argument(x: Any, device: Device) -> Any:
    """What a kernel sees of an argument."""
    if isinstance(x, TensorDescriptor):
        return Descriptor(x, device)
    if isinstance(x, Tensor):
        return Pointer.to(x, device)
    if isinstance(x, tuple):
        return tuple(_argument(part, device) for part in x)
    return x if x is None or isinstance(x, bool) else register(x)


class _Source(dict[Any, Callable[..., Any]]):
    """Jitted functions' sources as Python's functions, whose globals are those of one program."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        known, names = _known(program), {**program.names()}
        self.known, language = known, _Language(**names)
        known |= {id(module): language for module in (gl, triton.language)}

    def __missing__(self, source: FunctionType) -> Callable[..., Any]:
        names: Names = {name: self._value(name, x) for name, x in source.__globals__.items()}
        copy = FunctionType(source.__code__, names, source.__name__, source.__defaults__, source.__closure__)
        self[source] = copy
        return copy

    def _value(self, name: str, x: Any) -> Any:
        """What stands for a global of a kernel's module."""
        if id(x) in self.known:
            return self.known[id(x)]
        if hasattr(x, "fn") and not isinstance(x, Kernel):
            if x.fn.__module__ == "mfu_kernels.activations_device":
                return ACTIVATED.get(x.fn.__name__)
            return lambda *args, **options: self[x.fn](*args, **options)
        return x.value if isinstance(x, gl.constexpr) else x


def _known(program: Program) -> dict[int, Any]:
    """What stands for each module and function of Gluon's, by its identity; Triton's versions have various names."""
    functions: dict[ModuleType, Names] = {
        hopper.mbarrier: {
            "init": program.init, "expect": program.expect, "arrive": program.arrive, "wait": program.wait,
            "invalidate": lambda place: None, "MBarrierLayout": lambda *_: None,
        },
        hopper.tma: {
            "async_load": program.load_tile, "async_copy_global_to_shared": program.load_tile,
            "async_store": program.store_tile, "async_copy_shared_to_global": program.store_tile,
            "store_wait": program.store_wait,
        },
        hopper: {
            "warpgroup_mma": program.mma, "warpgroup_mma_wait": program.mma_wait,
            "warpgroup_mma_init": lambda x: x, "fence_async_shared": program.fence,
        },
    }  # fmt: skip
    known: dict[int, Any] = {}
    for module, names in functions.items():
        known[id(module)] = _Language(**names)
        known |= {id(getattr(module, name)): here for name, here in names.items() if hasattr(module, name)}
    return known
