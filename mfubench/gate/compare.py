"""What both sides' stocks come to, row by row: counts of the model. Its kernels are next door, in `code`."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from .rows import Row, Verdict
from .where import differences

Stock = Mapping[str, Any]
"""What `side.take_stock` says of a model."""
Limits = Mapping[str, float]
UNITS = {
    **dict.fromkeys(("bytes", "kept_activations", "peak_memory"), "B"),
    **dict.fromkeys(("model_flops", "hardware_flops", "wide_flops"), "FLOP"),
}
OF_THE_MODEL = ("parameters", "model_flops")  # which model it is; neither more nor less of them is worse
UNLIMITED = ("operators",)  # fewer may be slower


def missing_row(benchmark: str, base: Stock, head: Stock) -> Row | None:
    """The one row there is where a side could not be looked at; None where both could."""
    if "refused" in head:
        return Row("ERROR", benchmark, "model", "model", None, None, f"head: {head['refused']}")
    if base.get("missing"):
        return Row("NO_BASELINE", benchmark, "model", "model", None, "there", f"base: {base['refused']}")
    if "refused" in base:
        return Row("ERROR", benchmark, "model", "model", None, "there", f"base: {base['refused']}")
    return None


def is_same_code(base: Stock, head: Stock) -> bool:
    """Whether nothing that could change a time was found: neither code, nor counts, nor compiled kernels."""
    same = ("code", "counts", "data_hash", "not_compiled")
    return all(base[part] == head[part] for part in same) and _codes(base) == _codes(head)


def _codes(stock: Stock) -> list[Any]:
    """The kernels without where their functions stand."""
    same = ("kernel", "variant", "config", "launches", "grids", "error")
    return [
        (target, *(kernel[part] for part in same), (kernel["code"] or {}).get("digest"))
        for target, kernels in stock["kernels"].items()
        for kernel in kernels
    ]  # fmt: skip


def model_rows(benchmark: str, base: Stock, head: Stock, limits: Limits) -> Iterator[Row]:
    """Counts of the model, exact on both sides. A model that is another one may need more of everything."""
    before, after = base["counts"], head["counts"]
    other = "as the model is another one" if any(before[name] != after[name] for name in OF_THE_MODEL) else ""
    if base["data_hash"] != head["data_hash"]:
        other = "as its batches are others"
        why = "its batches are not base's: what is counted and timed is other work"
        yield Row("CHANGED", benchmark, "model", "batches", base["data_hash"], head["data_hash"], why)
    yield from (_count_row(benchmark, name, base, head, limits.get(name), other) for name in after)
    unknown = [name for name in head["unknown_ops"] if name not in base["unknown_ops"]]
    if unknown:
        why = f"operators whose FLOPs are not known, so that MFU misses them: {', '.join(unknown)}"
        yield Row("CHANGED", benchmark, "model", "unknown_ops", len(base["unknown_ops"]), len(head["unknown_ops"]), why)


def _count_row(benchmark: str, name: str, base: Stock, head: Stock, margin: float | None, other: str) -> Row:
    """One count, and where in the model it differs; ``other``: why more of it may be meant, if so."""
    old, new = base["counts"][name], head["counts"][name]
    verdict, why = _counted(name, old, new, margin, other)
    ratio = (new / old,) * 3 if old else None
    row = Row(verdict, benchmark, "model", name, old, new, why, unit=UNITS.get(name, ""), ratio=ratio, margin=margin)
    if old == new:
        return row
    if name == "peak_memory" and base["peak_phase"] != head["peak_phase"]:
        why += f", reached in {head['peak_phase']}, not in {base['peak_phase']}"
    where, elsewhere = differences(base["where"][name], head["where"][name])
    known = (head["sources"][each.module] for each in where if each.module in head["sources"])
    file, line = next(known, (None, None))
    return replace(row, why=why, where=where, elsewhere=elsewhere, file=file, line=line)


def _counted(name: str, old: float, new: float, margin: float | None, other: str) -> tuple[Verdict, str]:
    """``other``: why more of it may be meant, if so."""
    if new == old:
        return "PASS", ""
    change = f"{(new / old - 1):+.2%}" if old else "from nothing"
    if name in OF_THE_MODEL:
        moved = ", and MFU's numerator with it" if name == "model_flops" else ""
        return "CHANGED", f"another model: {change}{moved}"
    if name in UNLIMITED or margin is None:
        return "CHANGED", change
    if new < old:
        return "IMPROVED", change
    if other:
        return "CHANGED", f"{change}, {other}"
    if new <= old * (1 + margin):
        return "PASS", f"{change}, allowed {margin:.2%}"
    return "FAIL", f"{change} in the same model, allowed {margin:.2%}"
