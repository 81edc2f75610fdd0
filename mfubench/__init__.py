"""mfubench: how much of a GPU a recommendation model uses, where the rest is lost, and which change gets it back."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .kernels.locks import use_lock as use_lock
    from .live import profile as profile
    from .live import show as show
    from .optimize.recipe import apply as apply

__version__ = "0.1.0"
__all__ = ["apply", "profile", "show", "use_lock"]
_HOMES = {"apply": "optimize.recipe", "profile": "live", "show": "live", "use_lock": "kernels.locks"}


def __getattr__(name: str) -> Any:
    """What scripts call, imported when it is asked for: it brings torch, which the command line's help must not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
