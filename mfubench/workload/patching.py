"""Changes to live objects that are taken back: one instance's attribute, never its class's."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import nn

Undo = Callable[[], None]
_MISSING = object()


def patch(target: Any, name: str, value: Any) -> Undo:
    """Set an attribute of one instance; undone, it has the one that it had, or its class's again."""
    before = vars(target).get(name, _MISSING)
    setattr(target, name, value)

    def undo() -> None:
        delattr(target, name) if before is _MISSING else setattr(target, name, before)

    return undo


def together(undos: Iterable[Undo]) -> Undo:
    """Undo all, the last first."""
    listed = list(undos)

    def undo() -> None:
        while listed:
            listed.pop()()

    return undo


def own_forward(module: "nn.Module") -> Callable[..., Any]:
    """The module's forward as a function of the module: bound, it would keep a copy of the module to the original."""
    own = vars(module).get("forward")
    if own is None:
        return type(module).forward
    if getattr(own, "__self__", None) is module:
        return cast(Callable[..., Any], own.__func__)
    return lambda _self, *args, **kwargs: own(*args, **kwargs)
