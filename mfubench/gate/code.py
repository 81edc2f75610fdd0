"""The compiled code of the kernels that both sides launch, row by row.

Only what can hardly be meant fails: it costs on every GPU. What may be meant, or may gain, is told.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .compare import Limits, Stock
from .rows import Row, Verdict

Launched = Mapping[str, Any]
"""A `launches.Launched` as JSON."""
MakeRow = Callable[..., Row]
"""Makes a row of a verdict, a metric, its value before and now, and why; a ``margin`` may follow."""
STRONGER = {  # classes of instructions, the strongest first
    "tensor_core": ("tcgen05", "wgmma", "mma", None),
    "async_copy": ("tma", "cp.async", None),
}
SAID = {"tensor_core": "tensor cores", "async_copy": "asynchronous copies"}


def kernel_rows(benchmark: str, base: Stock, head: Stock, limits: Limits, folders: tuple[Path, Path]) -> Iterator[Row]:
    """The kernels that the step launches, on every target; ``folders``: base's and head's, which files are called in.

    One that only base has is named by its file, without a line, as head has no such line.
    """
    for target in [target for target in head["kernels"] if target in base["kernels"]]:
        for before, after in _grouped(base["kernels"][target], head["kernels"][target]):
            one, folder = (after[0], folders[1]) if after else ({**before[0], "line": None}, folders[0])
            row = partial(_row, benchmark, target, one, folder)
            if all(kernel["taken"] or kernel["locked"] for kernel in (*before, *after)):
                for old, new in _matched(before, after):
                    yield from _kernel(row, old, new, limits)
            else:
                yield from _space(row, before, after)
    for target in dict.fromkeys([*base["not_compiled"], *head["not_compiled"]]):
        why = {name: side["not_compiled"].get(target) for name, side in (("base", base), ("head", head))}
        told = "; ".join(f"{name}: {reason}" for name, reason in why.items() if reason)
        verdict: Verdict = "INCONCLUSIVE" if all(why.values()) else "ERROR"
        about = f"on {target}"
        yield Row(verdict, benchmark, "kernels", "kernels", None, None, f"not found out: {told}", subject=about)


def _grouped(before: Sequence[Launched], after: Sequence[Launched]) -> list[tuple[list[Launched], list[Launched]]]:
    """Kernels of the same name and variant on both sides, in the order in which they are launched first."""
    places: dict[tuple[str, str], tuple[list[Launched], list[Launched]]] = defaultdict(lambda: ([], []))
    for side, kernels in enumerate((before, after)):
        for kernel in kernels:
            places[kernel["kernel"], kernel["variant"]][side].append(kernel)
    return list(places.values())


def _matched(
    before: Sequence[Launched], after: Sequence[Launched]
) -> Iterator[tuple[Launched | None, Launched | None]]:
    """Each variant with what it was before: of the same config, else of the same code, else in order of launches."""
    olds, news = list(before), list(after)
    for trait in (lambda one: one["config"], lambda one: one["code"] and one["code"]["digest"]):
        for old in list(olds):
            new = next((new for new in news if trait(new) is not None and trait(new) == trait(old)), None)
            if new is not None:
                olds.remove(old)
                news.remove(new)
                yield old, new
    yield from zip_longest(olds, news)


def _row(
    benchmark: str, target: str, one: Launched, folder: Path,
    verdict: Verdict, metric: str, before: Any, now: Any, why: str, margin: float | None = None,
) -> Row:  # fmt: skip
    """A row about the kernel ``one``, where its function is defined."""
    variant = f" ({one['variant']})" if one["variant"] else ""
    subject, file = f"{one['kernel']}{variant} on {target}", one["file"]
    if file is not None and Path(file).is_relative_to(folder):
        file = str(Path(file).relative_to(folder))
    return Row(
        verdict, benchmark, "kernels", metric, before, now, why,
        subject=subject, margin=margin, file=file, line=one["line"],
    )  # fmt: skip


def _kernel(row: MakeRow, old: Launched | None, new: Launched | None, limits: Limits) -> Iterator[Row]:
    if new is None:
        yield row("CHANGED", "launched", "yes", "no", "no longer launched")
    elif new["error"] is not None and old is not None and old["error"] is not None:
        yield row("CHANGED", "compiles", "no", "no", f"compiles on neither side: {new['error']}")
    elif new["error"] is not None:
        yield row("FAIL", "compiles", None if old is None else "yes", "no", f"does not compile: {new['error']}")
    elif old is None:
        spilled = new["code"]["spill_bytes"]
        spills = f", and spills {spilled} bytes a thread" if spilled else ""
        yield row("CHANGED", "launched", "no", "yes", f"launched for the first time{spills}")
    elif old["error"] is not None:
        yield row("IMPROVED", "compiles", "no", "yes", "did not compile")
    else:
        yield from _code(row, old, new, limits)


def _space(row: MakeRow, before: Sequence[Launched], after: Sequence[Launched]) -> Iterator[Row]:
    """An autotuner's configs: which of them wins, a GPU would tell; but none that spills or does not compile should."""
    if not before or not after:
        yield row("CHANGED", "launched", *(("yes", "no") if before else ("no", "yes")), "autotuned, on one side only")
        return
    sound = [sum(not one["error"] and not one["code"]["spill_bytes"] for one in side) for side in (before, after)]
    told = [f"{count} of {len(side)}" for count, side in zip(sound, (before, after), strict=True)]
    if sound[0] and not sound[1]:
        verdict, why = "FAIL", "no config is left that compiles, fits and does not spill"
    elif told[0] == told[1]:
        verdict, why = "PASS", "as many configs compile, fit and do not spill"
    else:
        verdict, why = "CHANGED", "configs that compile, fit and do not spill"
    yield row(verdict, "configs", *told, why)


def _code(row: MakeRow, old: Launched, new: Launched, limits: Limits) -> Iterator[Row]:
    before, now = old["code"], new["code"]
    if (old["launches"], old["grids"]) != (new["launches"], new["grids"]):
        told = [f"{side['launches']} of {', '.join(side['grids'])}" for side in (old, new)]
        yield row("CHANGED", "launches", *told, "launched otherwise")
    if before["digest"] == now["digest"]:
        yield row("PASS", "code", before["digest"], now["digest"], "the same instructions")
        return
    found = list(_worse(row, before, now, limits, won=new["locked"]))
    config = "" if old["config"] == new["config"] else f", with {new['config']} for {old['config']}"
    if not found:
        yield row("PASS", "code", before["digest"], now["digest"], f"other instructions, in no way worse{config}")
    yield from found


def _worse(
    row: MakeRow, before: Mapping[str, Any], now: Mapping[str, Any], limits: Limits, *, won: bool
) -> Iterator[Row]:
    """In what the code is worse: what costs on every GPU fails, what may be meant is told.

    ``won``: its config was the fastest on a GPU, its spills included.
    """

    def worse(verdict: Verdict, name: str, why: str) -> Row:
        return row(verdict, name, before[name], now[name], why, limits.get(name))

    if now["spill_bytes"] > before["spill_bytes"] + limits["spill_bytes"]:
        why = f"spills {now['spill_bytes']} bytes a thread, {before['spill_bytes']} before"
        yield worse("CHANGED" if won else "FAIL", "spill_bytes", why)
    for name, classes in STRONGER.items():
        if classes.index(now[name]) > classes.index(before[name]):
            yield worse("FAIL", name, f"{SAID[name]}: {now[name] or 'none'}, {before[name]} before")
    if now["access_bytes"] <= before["access_bytes"] / 2 and before["access_bytes"]:
        why = f"a thread reads and writes {now['access_bytes']} bytes at once at most, {before['access_bytes']} before"
        yield worse("FAIL", "access_bytes", why)
    if now["occupancy"] < before["occupancy"]:
        more = now["registers"] - before["registers"]
        why = f"occupancy {before['occupancy']:.0%} to {now['occupancy']:.0%}, registers {more:+d}"
        yield worse("CHANGED" if now["occupancy"] else "FAIL", "occupancy", why)
    elif now["registers"] > before["registers"] + limits["registers"]:
        yield worse("CHANGED", "registers", f"registers {before['registers']} to {now['registers']}")
    if now["instructions"] > before["instructions"] * (1 + limits["instructions"]):
        yield worse("CHANGED", "instructions", f"instructions {before['instructions']} to {now['instructions']}")
