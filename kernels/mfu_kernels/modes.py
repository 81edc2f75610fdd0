"""What a process does with kernels: launch them, or compile them ahead for a target that need not be there.

Importing this does not import triton.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

MetaParameters = Mapping[str, int | str | bool]
ConfigChoice = Callable[[str, Sequence[Any]], Any]
"""Chooses one of a kernel's configs by its name and its space, or None to leave the choice to the launch."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel compiled ahead: for which key, with which config, and triton's CompiledKernel or what it raised.

    ``default``: a launch takes the config where nothing else is locked; ``locked``: it won on a GPU of that generation.
    ``grid`` is the launch's with that config, in programs.
    """

    kernel: str
    key: MetaParameters
    config: Any
    default: bool
    locked: bool
    grid: tuple[int, ...]
    result: Any

    @property
    def taken(self) -> bool:
        """Whether launches take the config on some GPU of that generation."""
        return self.default or self.locked


Extent = Literal["all", "launched", "none"]
"""Which of a kernel's configs are compiled ahead: its whole space, those that launches take, or none."""

Wanted = Callable[[str, MetaParameters], Extent]
"""What is wanted of a kernel, by its name and key."""

Watcher = Callable[[str, str, str, str], None]
"""Told of a launch: the kernel's name, its key and config, and where that comes from, in words."""

_sink: Callable[[Compiled], None] | None = None
_wanted: "Wanted | None" = None
_forced: "ConfigChoice | None" = None
_watcher: "Watcher | None" = None


def compiling_ahead() -> bool:
    """Whether kernels are compiled in place of being launched; tensors may then be on the device "meta"."""
    return _sink is not None


@contextmanager
def compile_ahead(sink: Callable[[Compiled], None], wanted: Wanted) -> Iterator[None]:
    """Inside, each launch compiles what is ``wanted`` for triton's active target and reports it to ``sink``.

    The innermost such context has it.
    """
    global _sink, _wanted
    before = _sink, _wanted
    _sink, _wanted = sink, wanted
    try:
        yield
    finally:
        _sink, _wanted = before


def ahead(kernel: str, key: MetaParameters) -> tuple[Callable[[Compiled], None] | None, Extent]:
    """Where compiled kernels go, and what is wanted of this one."""
    return _sink, _wanted(kernel, key) if _wanted is not None else "none"


@contextmanager
def watching_launches(watcher: Watcher) -> Iterator[None]:
    """Inside, ``watcher`` is told of every launch; not in a pass that is timed."""
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


def launch_watcher() -> Watcher | None:
    """Who is to be told of launches, or None."""
    return _watcher


@contextmanager
def forced_config(choice: ConfigChoice) -> Iterator[None]:
    """Inside, launches take the config that ``choice`` gives them, before what is locked and the default."""
    global _forced
    before, _forced = _forced, choice
    try:
        yield
    finally:
        _forced = before


def forced(kernel: str, configs: Callable[[], Sequence[Any]]) -> Any:
    """The config that `forced_config` asks for, or None; ``configs`` makes the kernel's, which costs a launch time."""
    return None if _forced is None else _forced(kernel, configs())


def nth_config(index: int | str | None) -> ConfigChoice:
    """Config ``index`` modulo the size of each kernel's space, or the first of the form of that name.

    None, or where a space has no such form, leaves the choice to the launch.
    """
    if isinstance(index, str):
        return lambda _kernel, configs: next((one for one in configs if index in one.kwargs), None)
    return lambda _kernel, configs: None if index is None else configs[index % len(configs)]
