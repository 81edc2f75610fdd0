"""Where in the model two sides' counts differ: by module, class of operator, and direction or kind of memory."""

import inspect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mfubench.report import format as fmt
from mfubench.run import pattern_of

if TYPE_CHECKING:
    from torch import nn

    from mfubench.measure.count import Count
    from mfubench.measure.memory import MemoryKey, MemoryPeak

Entry = tuple[str, str, str, int]
"""Module, class of operator, part, and how much of a count is there; class and part are empty where there is none."""
Key = tuple[str, str, str]
NAMED = 3  # of the differences of a count
FROM_WORK = {"model_flops": "model", "hardware_flops": "hardware", "bytes": "bytes"}  # count: field of Work
ITEMSIZE = {"fp32": 4, "tf32": 4, "bf16": 2}  # of a workload's dtypes
DIRECTIONS = {"fwd": "forward", "bwd": "backward", "recompute": "recomputed"}
INSTALLED = "site-packages"  # also in an environment that lies in the repository


@dataclass(frozen=True, slots=True)
class Difference:
    """How much of a count a place in the model has in base and in head.

    ``part``: forward, backward or recomputed; of the peak, the kind of memory. Where several of the modules in a list
    differ by themselves, ``module`` has a * for their numbers, and stands for so many ``modules`` together.
    """

    module: str
    operators: str
    part: str
    base: int
    head: int
    modules: int = 1

    @property
    def more(self) -> int:
        """By how much head has more."""
        return self.head - self.base


def places(model: "nn.Module", count: "Count", peak: "MemoryPeak", dtype: str) -> dict[str, list[Entry]]:
    """What each count of a step in ``dtype`` (`side.COUNTS`) is made of; the entries of one sum up to it.

    Wide FLOPs are the hardware's in a type of more bytes than ``dtype`` has; an optimizer chooses its own.
    """
    from mfubench.measure.scopes import DATA, OPTIMIZER, module_names

    def part(key: Key) -> str:
        return "" if key[0] in (OPTIMIZER, DATA) else DIRECTIONS[key[1]]

    found: dict[str, list[Entry]] = {
        name: [(key.module, key.kind, part(key), getattr(work, of)) for key, work in count.work.items()]
        for name, of in FROM_WORK.items()
    }
    found["wide_flops"] = [
        (key.module, key.kind, part(key), work.wider_than(ITEMSIZE[dtype]))
        for key, work in count.work.items()
        if key.module != OPTIMIZER
    ]
    found["operators"] = [(key.module, key.kind, part(key), number) for key, number in count.operators.items()]
    found["kept_activations"] = [(key.module, key.made_by, "", size) for key, size in peak.kept_by_key.items()]
    found["peak_memory"] = [(key.module, key.made_by, _memory(key), size) for key, size in peak.by_key.items()]
    owners = {parameter: name for module, name in module_names(model).items() for parameter in module.parameters(False)}
    found["parameters"] = [(name, "", "", parameter.numel()) for parameter, name in owners.items()]
    return {name: [entry for entry in entries if entry[-1]] for name, entries in found.items()}


def _memory(key: "MemoryKey") -> str:
    return {"optimizer_state": "optimizer state", "other": "other memory"}.get(key.kind, key.kind)


def sources(model: "nn.Module", folder: Path) -> dict[str, tuple[str, int]]:
    """File in ``folder`` and line of each module's ``forward``; of one from elsewhere, such as torch's, its parent's.

    Lists of modules are there by their pattern, too.
    """
    from mfubench.measure.scopes import ROOT, module_names

    found: dict[str, tuple[str, int]] = {}
    for module, name in module_names(model).items():  # parents come first
        code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
        file = Path(code.co_filename).resolve() if code is not None else None
        parent = found.get(name.rpartition(".")[0] or ROOT)
        if code is not None and file is not None and file.is_relative_to(folder) and INSTALLED not in file.parts:
            found[name] = (str(file.relative_to(folder)), code.co_firstlineno)
        elif parent is not None:
            found[name] = parent
        if name in found:
            found.setdefault(pattern_of(name), found[name])
    return found


def differences(base: Iterable[Entry], head: Iterable[Entry]) -> tuple[tuple[Difference, ...], int]:
    """The largest differences of a count between both sides, and how many more there are.

    What moves from one module to another is none, and a module that is renamed is the same one.
    """
    before, after = _summed(base), _summed(head)
    names = _renamed(before, after)
    before = {(names.get(module, module), what, part): had for (module, what, part), had in before.items()}
    changed = {key: (before.get(key, 0), after.get(key, 0)) for key in before | after}
    alike: dict[Key, list[tuple[Key, int, int]]] = defaultdict(list)
    for key, (old, new) in _without_moves(changed).items():
        alike[pattern_of(key[0]), *key[1:]].append((key, old, new))
    found = [_together(pattern, members) for pattern, members in alike.items()]
    found = sorted((each for each in found if each.more), key=lambda each: -abs(each.more))
    return tuple(found[:NAMED]), len(found[NAMED:])


def _summed(entries: Iterable[Entry]) -> dict[Key, int]:
    found: dict[Key, int] = defaultdict(int)
    for *key, amount in entries:
        module, operators, part = key
        found[module, operators, part] += amount
    return dict(found)


def _renamed(before: Mapping[Key, int], after: Mapping[Key, int]) -> dict[str, str]:
    """What head calls modules that only base has, by its names: those of its own that have the most in common."""
    old_names, new_names = ({module for module, _, _ in side} for side in (before, after))
    same: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for (module, operators, part), has in after.items():
        if module not in old_names:
            same[operators, part, has].append(module)
    shared = Counter(
        (module, new)
        for (module, operators, part), had in before.items()
        if module not in new_names
        for new in same[operators, part, had]
    )
    names: dict[str, str] = {}
    taken: set[str] = set()
    for (old, new), _ in shared.most_common():
        if old not in names and new not in taken:
            names[old] = new
            taken.add(new)
    return names


def _without_moves(changed: Mapping[Key, tuple[int, int]]) -> dict[Key, tuple[int, int]]:
    """What differs, without pairs of places of which one has gained just what the other has lost."""
    left: dict[Key, tuple[int, int]] = {}
    gained: dict[tuple[str, str, int], list[Key]] = defaultdict(list)
    for key, (old, new) in changed.items():
        if old == new:
            continue
        _, operators, part = key
        if opposite := gained[operators, part, old - new]:
            del left[opposite.pop()]
        else:
            left[key] = (old, new)
            gained[operators, part, new - old].append(key)
    return left


def _together(pattern: Key, members: Sequence[tuple[Key, int, int]]) -> Difference:
    """The members of a list of modules as one difference, called by its pattern unless there is only one."""
    key = pattern if len(members) > 1 else members[0][0]
    return Difference(*key, sum(old for _, old, _ in members), sum(new for _, _, new in members), len(members))


def amount(more: float, unit: str) -> str:
    """How much more or less: ``+12.5 MiB``."""
    size = {"B": fmt.size, "FLOP": fmt.flops}.get(unit, lambda number: fmt.count(int(number)))(abs(more))
    return f"{'-' if more < 0 else '+'}{size}"


def called(difference: Difference) -> str:
    """The module, and how many of them it stands for."""
    several = f" ({difference.modules} modules)" if difference.modules > 1 else ""
    return f"{difference.module}{several}"


def in_words(found: Sequence[Difference], others: int, rest: float, unit: str) -> str:
    """``items: +12.5 MiB copy, forward; and -1.00 KiB in 2 more places``; ``rest``: what is in ``others``."""
    told = []
    for each in found:
        what = ", ".join(part for part in (each.operators, each.part) if part)
        told.append(f"{called(each)}: {' '.join([amount(each.more, unit), what]).strip()}")
    if others:
        told.append(f"and {amount(rest, unit)} in {others} more place{'s' if others > 1 else ''}")
    return "; ".join(told)
