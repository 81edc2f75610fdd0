"""Triton's interpreter, made quicker where it repeats itself: tests run tens of thousands of functions in it."""

from types import FunctionType
from typing import Any


def prepare_once_a_launch() -> None:
    """Let the interpreter look through ``triton.language`` once for each module in a launch, not at each call in it.

    At every call of a device function it replaces by its own what it finds in the language as the function's module
    sees it. Within a launch that finds nothing new after the first time, and takes a third of all its time.
    """
    from triton.runtime import interpreter

    prepare, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    prepared: set[int] = set()
    launching = False

    def prepare_new(fn: FunctionType) -> Any:
        if launching and id(fn.__globals__) in prepared:
            return interpreter._LangPatchScope()  # which changes nothing, and is asked to restore nothing
        prepared.add(id(fn.__globals__))
        return prepare(fn)

    def launch_and_forget(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal launching
        prepared.clear()
        launching = True
        try:
            launch(self, *args, **kwargs)
        finally:
            launching = False

    interpreter._patch_lang = prepare_new
    interpreter.GridExecutor.__call__ = launch_and_forget


def build_types_once() -> None:
    """Let the interpreter look up what it otherwise builds for every value: its type, its shape and NumPy's type.

    Types of one shape have the same one, which is seen to equal itself without comparing its numbers.
    """
    from triton.language import core
    from triton.runtime import interpreter

    make_type, make_value, equal = core.block_type.__init__, core.tensor.__init__, core.tuple.__eq__
    numpy_type = interpreter._get_np_dtype
    types: dict[tuple[Any, ...], dict[str, Any]] = {}
    shapes: dict[tuple[int, ...], Any] = {}
    values: dict[str, dict[str, Any]] = {}
    numpy_types: dict[str, Any] = {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        numbers = tuple(n.value if isinstance(n, core.constexpr) else n for n in shape)
        if (found := types.get((element_ty.name, numbers))) is None:
            make_type(self, element_ty, shape)
            self.shape = shapes.setdefault(numbers, self.shape)
            found = types[element_ty.name, numbers] = dict(vars(self))
        vars(self).update(found)

    def tensor(self: Any, handle: Any, type: Any) -> None:
        if (found := values.get(type.name)) is None:
            make_value(self, handle, type)
            found = values[type.name] = {name: value for name, value in vars(self).items() if name != "handle"}
        vars(self).update(found, handle=handle)

    def get_np_dtype(of: Any) -> Any:
        if (found := numpy_types.get(of.name)) is None:
            found = numpy_types[of.name] = numpy_type(of)
        return found

    core.block_type.__init__, core.tensor.__init__ = block_type, tensor
    core.tuple.__eq__ = lambda self, other: core.constexpr(True) if self is other else equal(self, other)
    interpreter._get_np_dtype = get_np_dtype
