"""Which modules a compiler's kernels come from: what torch.compile is asked while it compiles, and answers.

Inductor knows for each kernel that it makes the nodes of its graph that went into it, and for each node the modules
that were being called when it was captured; a node of the backward graph knows the same of the forward node whose
gradient it is. Both are asked for through Inductor's own settings and the trace log that tlparse reads, so nothing is
patched. A kernel may serve several modules at once, and then belongs to all of them.
"""

import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mfu_kernels.cost import OpClass

from .classify import op_class
from .operators import operator_name, tensors_of
from .traffic import LOOK_UPS

PASSES = ("post_grad_custom_pre_pass", "post_grad_custom_post_pass")
SETTINGS = {
    "trace.provenance_tracking_level": 2,
    "cpp.enable_kernel_profile": True,  # each C++ kernel opens a span of its own; idle, that costs tens of nanoseconds
}
TRACE_LOG = "torch.__trace"  # the structured log that TORCH_TRACE writes
TELLS = "create_kernel_information_json"
ARTIFACT = "inductor_provenance_tracking_node_mappings"  # told when a graph's kernels have been made
ORDER: tuple[OpClass, ...] = ("attention", "gemm", "embedding", "norm", "reduction", "elementwise", "copy", "other")
PRODUCTS: tuple[OpClass, ...] = ("attention", "gemm")  # classes of kernels that do matmul-like work

Owner = str | None
"""A module's name, or None for the module whose forward the compiled region is."""


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """One call that a compiled graph makes: of a kernel that was made for it, or of an operator that was left as it is.

    ``name`` is the kernel's own, or ``namespace::operator``; ``owners`` the modules that it serves, in the order of its
    work; ``repeated`` whether all of it repeats a forward in the backward; ``bytes`` the least that it moves at the
    shapes that were compiled first, None where one of them depends on the data.
    """

    name: str
    owners: tuple[Owner, ...]
    kind: OpClass
    repeated: bool = False
    bytes: int | None = None

    @property
    def generated(self) -> bool:
        """Whether the compiler made it."""
        return "::" not in self.name


@dataclass(slots=True)
class Compilation:
    """The calls of each graph by its region and direction, in order; ``blind`` says why none could be seen.

    ``happened`` says whether anything was compiled, by whatever compiler, and ``breaks`` why Dynamo ended graphs before
    a function's end, by how often.
    """

    graphs: dict[tuple[str, str], list[CompiledKernel]] = field(default_factory=dict)
    blind: str | None = None
    happened: bool = False
    breaks: Counter[str] = field(default_factory=Counter)


def compiler_loaded() -> bool:
    """Whether anything in this process can have been compiled; asking torch would load its compiler."""
    return "torch._dynamo" in sys.modules


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as one that a compiler never looks into."""
    disabled: Callable[..., Any] = torch.compiler.disable(function)
    return disabled


def run_eagerly() -> AbstractContextManager[None]:
    """A context in which what has been compiled runs as it was written, and stays compiled for later."""
    return torch.compiler.set_stance("force_eager") if compiler_loaded() else nullcontext()


@contextmanager
def watched(names: Mapping[nn.Module, str]) -> Iterator[Compilation]:
    """Note what is compiled inside; ``names`` are the modules that owners are looked for among."""
    found = Compilation()
    import torch._inductor.config as config
    from torch._dynamo.utils import counters

    before = Counter(counters["graph_break"])
    watch, log = _Watch(names, found), logging.getLogger(TRACE_LOG)
    found.blind = _cannot_see(config)
    # Functions, not methods: the settings are copied deeply, and a watch cannot be.
    passes = {PASSES[0]: lambda graph: watch.see_products(graph), PASSES[1]: lambda graph: watch.see_graph(graph)}
    log.addHandler(watch)
    try:
        with nullcontext() if found.blind else config.patch({**SETTINGS, **passes}):
            yield found
    finally:
        log.removeHandler(watch)
        found.breaks = Counter(counters["graph_break"]) - before
    if found.happened and not found.graphs and found.blind is None:
        found.blind = "another compiler than Inductor made them"


def _cannot_see(config: Any) -> str | None:
    """Why Inductor cannot be asked, None where it can."""
    import torch._inductor.debug as debug

    missing = [name for name in (*PASSES, *SETTINGS) if not _has(config, name)]
    if missing or not hasattr(debug, TELLS):
        return f"Inductor of torch {torch.__version__} has no {', '.join([*missing, TELLS])}"
    taken = [name for name in PASSES if getattr(config, name) is not None]
    return f"the model has set Inductor's {' and '.join(taken)} itself" if taken else None


def _has(config: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(config, part):
            return False
        config = getattr(config, part)
    return True


@dataclass(slots=True)
class _Node:
    owner: Owner
    kind: OpClass
    repeated: bool
    bytes: int | None
    works: bool
    picks: bool  # and so need not read all of an input
    inputs: list[str]
    users: list[str]


class _Watch(logging.Handler):
    """Notes each graph when its passes are done, and the origins of its kernels when they have been made."""

    def __init__(self, names: Mapping[nn.Module, str], found: Compilation) -> None:
        super().__init__()
        self._names = {str(id(module)): name for module, name in names.items()}
        self._found = found
        self._nodes: dict[str, _Node] = {}
        self._products: dict[frozenset[str], _Node] = {}
        self._made_before: set[str] = set()
        self._backward = False

    def see_products(self, graph: torch.fx.Graph) -> None:
        """Note who wants each product, before passes merge it with a sum whose owner then stands for both."""
        self._made_before = set(_origins())
        self._backward = any(node.op == "placeholder" and node.name.startswith("tangents_") for node in graph.nodes)
        seen = {node.name: self._node(node) for node in graph.nodes}
        self._products = {frozenset(node.inputs): node for node in seen.values() if node.kind in PRODUCTS}

    def see_graph(self, graph: torch.fx.Graph) -> None:
        """Note what is known of every node."""
        self._nodes = {node.name: self._node(node) for node in graph.nodes}
        for node in self._nodes.values():
            if node.kind in PRODUCTS and node.owner is None:
                merged = (known for inputs, known in self._products.items() if inputs < set(node.inputs))
                known = next(merged, None)
                node.owner, node.repeated = (known.owner, known.repeated) if known else (None, node.repeated)

    def emit(self, record: logging.LogRecord) -> None:
        """Note the kernels of the graph that was seen last."""
        told: dict[str, Any] = getattr(record, "metadata", {})
        self._found.happened |= "frame_id" in told
        if told.get("artifact", {}).get("name") != ARTIFACT or "frame_id" not in told:
            return
        region = f"{told['frame_id']}/{told['frame_compile_id']}"
        origins = {key: nodes for key, nodes in _origins().items() if key not in self._made_before}
        calls = sorted((int(key.rpartition(":")[2]), key.rpartition(":")[0], nodes) for key, nodes in origins.items())
        kernels = [self._kernel(name, nodes) for _, name, nodes in calls]
        self._found.graphs[region, "bwd" if self._backward else "fwd"] = kernels

    def _node(self, node: torch.fx.Node) -> _Node:
        forward = node.meta.get("fwd_nn_module_stack")
        owner = None
        for key in forward or node.meta.get("nn_module_stack") or {}:
            owner = self._names.get(key.partition("@")[0], owner)  # a module that is called again has @1, @2, ..
        target = node.target if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) else None
        return _Node(
            owner=owner,
            kind=_kind(target, node.meta.get("original_aten")) if target else "other",
            repeated=self._backward and not forward and owner is not None,
            bytes=_nbytes(node.meta.get("val")),
            works=target is not None and not target.is_view,
            picks=target is None or target.is_view or target._overloadpacket.__name__ in LOOK_UPS,
            inputs=[source.name for source in node.all_input_nodes],
            users=[user.name for user in node.users],
        )

    def _kernel(self, name: str, origins: list[str]) -> CompiledKernel:
        inside = {origin: self._nodes[origin] for origin in origins if origin in self._nodes}
        working = [node for node in inside.values() if node.works] or list(inside.values())
        kinds = {node.kind for node in working}
        return CompiledKernel(
            name=_plain_name(name),
            owners=tuple(dict.fromkeys(node.owner for node in working)),
            kind=next((kind for kind in ORDER if kind in kinds), "other"),
            repeated=bool(working) and all(node.repeated for node in working),
            bytes=self._moved(inside),
        )

    def _moved(self, inside: Mapping[str, _Node]) -> int | None:
        """Bytes of what the nodes read from outside, and of what is read outside of them."""
        sizes: dict[str, int | None] = {}
        for name, node in inside.items():
            for source in node.inputs:
                if self._made_by(source) not in inside:
                    whole = self._nodes[source].bytes
                    read = _of_known(min, whole, node.bytes) if node.picks else whole
                    sizes[source] = _of_known(max, sizes.get(source, 0), read)
            if node.works:
                sizes[name] = self._read_outside(name, inside)
        return _of_known(sum, *sizes.values())

    def _made_by(self, name: str) -> str:
        """The node whose memory a view, or a part of several results, looks at."""
        node = self._nodes[name]
        return name if node.works or len(node.inputs) != 1 else self._made_by(node.inputs[0])

    def _read_outside(self, name: str, inside: Mapping[str, _Node]) -> int | None:
        """Bytes of a node's value that others than ``inside`` read, themselves or through views."""
        node, parts = self._nodes[name], list[int | None]()
        for user in node.users:
            looks = not self._nodes[user].works and bool(self._nodes[user].users)
            if looks:
                parts.append(self._read_outside(user, inside))
            elif user not in inside:
                parts.append(node.bytes)
        return _of_known(min, node.bytes, _of_known(sum, *parts))


def _origins() -> dict[str, list[str]]:
    """Nodes of each kernel by ``name:ordinal``, of all the kernels that Inductor has made since it last forgot them.

    The log has them too, but not those of a backward that is compiled when it first runs.
    """
    import torch._inductor.debug as debug

    made: dict[str, dict[str, list[str]]] = getattr(debug, TELLS)()
    return {key: told["post_grad_nodes"] for key, told in made.items()}


def _kind(target: Any, original: Any) -> OpClass:
    """Class of a node: its own if it multiplies matrices, else that of the operator that it is a part of."""
    own = op_class(operator_name(target))
    whole = op_class(operator_name(original)) if isinstance(original, torch._ops.OpOverload) else own
    return own if own in PRODUCTS or whole in ("copy", "other") else whole


def _plain_name(name: str) -> str:
    """``extern_kernels.mm`` and ``torch.ops.aten.mm.default`` as ``aten::mm``; a generated kernel's name as it is."""
    *folder, last = name.split(".")
    if folder[:2] == ["torch", "ops"] and len(folder) == 4:
        return f"{folder[2]}::{folder[3]}"
    return f"aten::{last}" if folder else name


def _nbytes(value: Any) -> int | None:
    tensors = tensors_of(value)
    return _of_known(sum, *(_of_known(math.prod, each.element_size(), *map(_hint, each.shape)) for each in tensors))


def _of_known(combine: Callable[[list[int]], int], *sizes: int | None) -> int | None:
    """``combine`` of sizes that are all known, else None."""
    known = [size for size in sizes if size is not None]
    return combine(known) if len(known) == len(sizes) else None


def _hint(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    hint = getattr(getattr(size, "node", None), "hint", None)  # to ask the size itself would make it a constant
    return hint if isinstance(hint, int) else None
