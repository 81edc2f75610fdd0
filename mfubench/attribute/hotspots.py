"""Where most milliseconds of a step could be won back, and what would win them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mfubench.measure.scopes import BACKWARD, FORWARD
from mfubench.run import ModuleRow, family_of, pattern_of

from .attribution import UNOWNED
from .roofline import winnable

WINNABLE = ("padding", "recompute", "dtype", "memory_bound", "inefficiency", "optimizer", "data", "launch")
TABLES = ("Embedding", "EmbeddingBag")  # torch's
NUM_HOTSPOTS = 10

_ADVICE: dict[str, str] = {
    "padding": "jagged or windowed kernels that skip padded and masked work; bucket batches by length",
    "recompute": "keep more activations if memory allows",
    "dtype": "run this product in the run's own dtype",
    "launch": "torch.compile, CUDA graphs, or a larger batch",
    "memory_bound": "fuse with its neighbours, or move fewer bytes",
    "optimizer": "one fused kernel for all parameters, or fewer bytes of state; its bytes at the copy bandwidth remain",
    "data": "prepare and copy the next batch while this one runs",
    "inefficiency": "a better kernel, shape or layout; it is above its own roofline",
}
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


def hotspots(rows: Sequence[ModuleRow], floors: Mapping[str, float], step_ms: float) -> list[dict[str, Any]]:
    """(Modules, cause) pairs by the milliseconds that could be won at most, largest first, with what would mend them.

    A cause is won as a whole, but for the ``floors`` of phases that have bytes of their own to move. Modules that
    repeat, such as the layers of a stack or the tables of a model, are one.
    """
    grouped: dict[tuple[str, str], list[tuple[ModuleRow, float]]] = defaultdict(list)
    for row in rows:
        if row.name in (FORWARD, BACKWARD, UNOWNED):
            continue
        for cause, ms in winnable(row.causes).items():
            won_ms = min(ms, row.time_ms) - floors.get(cause, 0.0)
            if won_ms > 0 and family_of(cause) in WINNABLE:
                grouped[_pattern(row), cause].append((row, won_ms))
    found = [_hotspot(pattern, cause, members, step_ms) for (pattern, cause), members in grouped.items()]
    return sorted(found, key=lambda spot: -float(spot["won_ms"]))[:NUM_HOTSPOTS]


def _hotspot(pattern: str, cause: str, members: Sequence[tuple[ModuleRow, float]], step_ms: float) -> dict[str, Any]:
    rows, won_ms = [row for row, _ in members], sum(ms for _, ms in members)
    return {
        "module": pattern if len(rows) > 1 else rows[0].name,
        "modules": [row.name for row in rows],
        "cause": cause,
        "time_ms": sum(row.time_ms for row in rows),
        "won_ms": won_ms,
        "share": won_ms / step_ms,
        "advice": _DENSE_GRADIENT if _of_a_gradient(cause, rows) else advice(cause),
    }


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
