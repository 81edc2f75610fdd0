"""Regional compilation: a model's repeated blocks, and what else it is made of, compiled each by itself.

Compiled whole, a model is one graph in which every block is compiled again, and whose size sets the time. A block by
itself is a small graph, and blocks of one class and equal widths share one compilation.

The rule: a module that holds repeated blocks is taken apart, any other is a region. The modules inside a region are
compiled, too, for where they are called past it; that costs nothing before, as from the region's own forward the
compiler follows the call. Tables with row-sparse gradients, which no compiler takes, stay eager.
"""

import sys
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeGuard

import torch
from torch import nn

from mfubench.errors import BadInput

from .patching import Undo, own_forward, patch, together

MODEL = "model"  # as a region: the whole model
REGIONS = "regions"  # all of its regions, each by itself
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
COMPILATIONS_A_CLASS = 64  # where torch would run a class's ninth, of other widths than the eight before, eagerly
Table = nn.Embedding | nn.EmbeddingBag


def is_table(module: nn.Module) -> TypeGuard[Table]:
    """Whether the module looks up rows of a table."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def row_sparse(model: nn.Module) -> set[int]:
    """Ids of the tables' weights whose gradients hold the rows of a batch only."""
    return {id(module.weight) for module in model.modules() if _is_sparse(module)}


def regions(model: nn.Module) -> list[nn.Module]:
    """The modules that are compiled each by itself; ``model`` itself where it has no parts."""
    return list(_parts(model)) or [model]


def class_name(module: nn.Module) -> str:
    """What a region is called: the module's class, with its package; a script's as others import it."""
    package = type(module).__module__
    return f"{_script() if package == '__main__' else package}.{type(module).__qualname__}"


def _script() -> str:
    """The name by which others import the script that runs: a model may be written in its own training script."""
    main = sys.modules["__main__"]
    if main.__spec__ is not None:  # python -m package.module
        return main.__spec__.name
    if getattr(main, "__file__", None) is None:  # typed in
        return "__main__"
    path = Path(str(main.__file__)).resolve().with_suffix("")
    return ".".join(path.relative_to(Path.cwd()).parts) if path.is_relative_to(Path.cwd()) else path.name


def compile_region(
    model: nn.Module, region: str, *, dynamic: bool, cudagraphs: bool = False, floats_change: bool = False
) -> Undo:
    """Compile every module of the class ``region``, each by itself, all ``REGIONS``, or the whole ``MODEL`` as one.

    ``floats_change``: some float that the model reads, such as a temperature, may be another at each step.

    Raises:
        BadInput: no module of the model is of that class.
    """
    roots = [model] if region == MODEL else [m for m in model.modules() if class_name(m) == region]
    if not roots and region != REGIONS:
        raise BadInput(f"nothing to compile: no module of the model is a {region}")
    settings = [] if floats_change else [constant_floats()]
    options = {"dynamic": dynamic, "mode": "reduce-overhead" if cudagraphs else None}
    if region == REGIONS:
        return together([*settings, compile_regions(model, **options)])
    return together([*settings, *(compile_in_place(root, **options) for root in roots)])


def compile_regions(model: nn.Module, **options: Any) -> Undo:
    """Compile each region of ``model`` in place, with ``torch.compile``'s ``options``."""
    import torch._dynamo.config as config

    limit = _set("recompile_limit", max(config.recompile_limit, COMPILATIONS_A_CLASS))
    undos: list[Undo] = [limit, _tables_stay_eager(model)]
    for region in regions(model):
        undos += [_compile(module, options) for module in region.modules() if module is region or _has_work(module)]
    return together(undos)


def compile_in_place(module: nn.Module, **options: Any) -> Undo:
    """Compile ``module`` as one, at its first call, with ``torch.compile``'s ``options``."""
    return together([_tables_stay_eager(module), _compile(module, options)])


def constant_floats() -> Undo:
    """From now on floats of Python are constants of what is compiled, by value, for code in which none changes.

    With dynamic shapes torch takes them as symbols, finds that hardly an operator does, and traces everything again,
    which doubles the time before code is made.
    """
    return _set("specialize_float", True)


def _set(name: str, value: Any) -> Undo:
    import torch._dynamo.config as config

    before = getattr(config, name)
    setattr(config, name, value)
    return lambda: setattr(config, name, before)


def _compile(module: nn.Module, options: Mapping[str, Any]) -> Undo:
    """In torch's own place for what stands in for a module's call.

    Torch's compiler leaves the frames of its own classes alone: there a frame of ours is around the forward, from which
    it follows it. Hooks stay outside of it, as they do of a forward of others' classes: a compiler that follows a call
    looks at its hooks once, and those that come later never run.
    """
    undo = patch(module, "_compiled_call_impl", None)
    if not type(module).__module__.startswith("torch.nn"):
        module.compile(**options)
        return undo

    forward = torch.compile(_forward, **options)
    calls: list[Undo] = []  # what undoes the patch, once for each call that runs: in several threads, or within another
    lock = Lock()

    def call(*args: Any, **kwargs: Any) -> Any:
        with lock:
            inside = types.MethodType(partial(forward, own_forward(module)), module)
            calls.append(calls[0] if calls else patch(module, "forward", inside))
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            with lock:
                uncompiled = calls.pop()
                if not calls:
                    uncompiled()

    module._compiled_call_impl = call
    return undo


def _forward(own: Callable[..., Any], self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return own(self, *args, **kwargs)


def _tables_stay_eager(model: nn.Module) -> Undo:
    return together(
        patch(table, "forward", types.MethodType(torch.compiler.disable(own_forward(table)), table))
        for table in model.modules()
        if _is_sparse(table)
    )


def _is_sparse(module: nn.Module) -> TypeGuard[Table]:
    return is_table(module) and module.sparse


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, CONTAINERS) or any(map(_repeats, child.modules())):
            yield from _parts(child)
        elif _has_work(child):
            yield child


def _repeats(module: nn.Module) -> bool:
    """Whether it contains blocks, which have parts of their own, two or more of one class."""
    blocks = [type(child) for child in module.children() if any(True for _ in child.children())]
    return isinstance(module, CONTAINERS) and len(set(blocks)) < len(blocks)


def _has_work(module: nn.Module) -> bool:
    """Whether it does more than one operator of torch, or look up rows that no compiler takes."""
    inside = [part for part in module.modules() if part is not module and not isinstance(part, CONTAINERS)]
    if isinstance(module, CONTAINERS) or all(map(_is_sparse, inside or [module])):
        return False
    return bool(inside) or not type(module).__module__.startswith("torch.nn")
