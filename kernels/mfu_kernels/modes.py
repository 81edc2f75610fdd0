"""What a process does with kernels: launch them, or compile them ahead for a target that need not be there.

Importing this does not import triton.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MetaParameters = Mapping[str, int | str | bool]
ConfigChoice = Callable[[str, Sequence[Any]], Any]
"""Chooses one of a kernel's configs by its name and its space, or None to leave the choice to the launch."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel compiled ahead: for which key, with which config, and triton's CompiledKernel or what it raised."""

    kernel: str
    key: MetaParameters
    config: Any
    is_default: bool
    result: Any


Wanted = Callable[[str, MetaParameters], bool]
"""Whether all configs are wanted of a kernel, by its name and key."""

_sink: Callable[[Compiled], None] | None = None
_all_configs: Wanted | bool = False
_forced: "ConfigChoice | None" = None


def compiling_ahead() -> bool:
    """Whether kernels are compiled in place of being launched; tensors may then be on the device "meta"."""
    return _sink is not None


@contextmanager
def compile_ahead(sink: Callable[[Compiled], None], *, all_configs: Wanted | bool = False) -> Iterator[None]:
    """Inside, a launch compiles its kernel for triton's active target and reports it to ``sink``; nothing runs.

    ``all_configs``: each config of the kernel's space, not only the one that a launch would take; of every kernel, or
    of those that it says.
    """
    global _sink, _all_configs
    if _sink is not None:
        raise RuntimeError("kernels are compiled ahead already")
    _sink, _all_configs = sink, all_configs
    try:
        yield
    finally:
        _sink, _all_configs = None, False


def ahead(kernel: str, key: MetaParameters) -> tuple[Callable[[Compiled], None] | None, bool]:
    """Where compiled kernels go, and whether all configs of this one are wanted."""
    return _sink, _all_configs(kernel, key) if callable(_all_configs) else _all_configs


@contextmanager
def forced_config(choice: ConfigChoice) -> Iterator[None]:
    """Inside, launches take the config that ``choice`` gives them, before what is locked and the default."""
    global _forced
    before, _forced = _forced, choice
    try:
        yield
    finally:
        _forced = before


def forced(kernel: str, configs: Sequence[Any]) -> Any:
    """The config that `forced_config` asks for, or None."""
    return None if _forced is None else _forced(kernel, configs)


def nth_config(index: int | None) -> ConfigChoice:
    """Config ``index`` modulo the size of each kernel's space; None leaves the choice to the launch."""
    return lambda _kernel, configs: None if index is None else configs[index % len(configs)]
