"""Where most milliseconds of a step could be won back, and what would win them."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mfubench.measure.classify import communicates
from mfubench.measure.scopes import BACKWARD, FORWARD
from mfubench.run import KernelRow, ModuleRow, family_of, pattern_of

from .attribution import UNOWNED
from .roofline import winnable
from .waits import WAIT

WINNABLE = (
    *("padding", "recompute", "dtype", "memory_bound", "inefficiency"),
    *("optimizer", "data", "communication", "launch"),
)
TABLES = ("Embedding", "EmbeddingBag")  # torch's
NUM_HOTSPOTS = 10
NUM_OPERATORS, NUM_NAMED = 2, 3  # that a row names: operators, and modules that have no name in common
MOSTLY = 0.5

_ADVICE: dict[str, str] = {
    "padding": "jagged or windowed kernels that skip padded and masked work; bucket batches by length",
    "recompute": "keep more activations if memory allows",
    "dtype": "run this product in the run's own dtype",
    "launch": "torch.compile, CUDA graphs, or a larger batch",
    "memory_bound": "fuse with its neighbours, or move fewer bytes",
    "optimizer": "one fused kernel for all parameters (fused=True), or fewer bytes of parameters and state",
    "communication": "begin it earlier and hide it behind work; fewer or narrower bytes between ranks; or one rank is "
    "late: see the ranks",
    "data": "prepare and copy the next batch while this one runs",
    "inefficiency": "another kernel, shape or layout for these operators; `mfubench optimize` tries some",
}
_FUSED_ALREADY = "fewer bytes of parameters and state; its kernel is fused already"
_FUSE = {
    "norm": "a fused norm, or fuse it into its neighbours",
    "elementwise": "torch.compile or a fused kernel",
    "embedding": "narrower or fewer tables; a fused optimizer",
    "copy": "drop the copy: layouts that need no concatenation or cast",
    "attention": "a fused attention kernel",
}
_DENSE_GRADIENT = (
    "mostly its backward: where the gradient is dense, it is as large as the table; sparse=True with SparseAdam or "
    "Adagrad, or tables fused with their optimizer (torchrec)"
)


def hotspots(
    rows: Sequence[ModuleRow], kernels: Sequence[KernelRow], floors: Mapping[str, float], step_ms: float
) -> list[dict[str, Any]]:
    """(Modules, cause) pairs by the milliseconds that could be won at most, largest first, with what would mend them.

    A cause is won as a whole, but for the ``floors`` of phases that have bytes of their own to move. Modules that
    repeat, such as the layers of a stack or the tables of a model, are one. ``operators`` are those of ``kernels`` that
    take most of the time which a cause is about.
    """
    grouped: dict[tuple[str, str], list[tuple[ModuleRow, float]]] = defaultdict(list)
    for row in rows:
        if row.name in (FORWARD, BACKWARD, UNOWNED):
            continue
        for cause, ms in winnable(row.causes).items():
            won_ms = min(ms, row.time_ms) - floors.get(cause, 0.0)
            if won_ms > 0 and family_of(cause) in WINNABLE:
                grouped[_pattern(row), cause].append((row, won_ms))
    found = [_hotspot(pattern, cause, members, kernels, step_ms) for (pattern, cause), members in grouped.items()]
    return sorted(found, key=lambda spot: -float(spot["won_ms"]))[:NUM_HOTSPOTS]


def _hotspot(
    pattern: str,
    cause: str,
    members: Sequence[tuple[ModuleRow, float]],
    kernels: Sequence[KernelRow],
    step_ms: float,
) -> dict[str, Any]:
    rows, won_ms = [row for row, _ in members], sum(ms for _, ms in members)
    operators = _operators({row.name for row in rows}, cause, kernels)
    return {
        "module": _shown(pattern, [row.name for row in rows]),
        "modules": [row.name for row in rows],
        "cause": cause,
        "time_ms": sum(row.time_ms for row in rows),
        "won_ms": won_ms,
        "share": won_ms / step_ms,
        "operators": [_plain(name) for name in list(operators)[:NUM_OPERATORS]],
        "advice": _advice(cause, rows, operators),
    }


def _shown(pattern: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - NUM_NAMED} more" if names[NUM_NAMED:] else ""
    return pattern if pattern.strip(".*") else ", ".join(names[:NUM_NAMED]) + more  # those of a bare nn.Sequential


def _operators(modules: Collection[str], cause: str, kernels: Sequence[KernelRow]) -> dict[str, float]:
    """Milliseconds of the operators that a cause is about, the longest first: of its class, or of a phase all."""
    kind, found = cause.partition(".")[2], defaultdict[str, float](float)
    for row in kernels:
        talks = cause == "communication" and (communicates(row.operator) or row.operator == WAIT)
        if row.module in modules and (row.kind == kind or cause == "optimizer" or talks):
            found[row.operator] += row.time_ms
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _plain(operator: str) -> str:
    """``aten::cat`` as ``cat``, and a kernel of C++ without its namespaces and template arguments."""
    return re.split(r"[<(]", operator.replace("(anonymous namespace)::", "").removeprefix("void "))[0].split("::")[-1]


def _advice(cause: str, rows: Sequence[ModuleRow], operators: Mapping[str, float]) -> str:
    fused = sum(ms for name, ms in operators.items() if "fused" in name.lower())
    if cause == "optimizer" and fused > MOSTLY * sum(operators.values()):
        return _FUSED_ALREADY
    return _DENSE_GRADIENT if _of_a_gradient(cause, rows) else advice(cause)


def _pattern(row: ModuleRow) -> str:
    """The name that modules which repeat have in common: ``blocks.*.mlp``, ``tables.*``."""
    pattern = pattern_of(row.name)
    return f"{pattern.rpartition('.')[0]}.*" if row.type in TABLES and "." in pattern else pattern


def _of_a_gradient(cause: str, rows: Sequence[ModuleRow]) -> bool:
    """Whether it is tables that take most of their time for their gradients."""
    of_tables = cause.endswith((".embedding", ".copy")) and rows[0].type in TABLES
    return of_tables and sum(row.bwd_time_ms - row.fwd_time_ms for row in rows) > 0


def advice(cause: str) -> str:
    """What would mend a cause, in a few words."""
    family, _, kind = cause.partition(".")
    if family == "memory_bound" and kind in _FUSE:
        return _FUSE[kind]
    return _ADVICE.get(family, "")
