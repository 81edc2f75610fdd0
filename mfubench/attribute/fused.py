"""Compiled regions in a trace: which of a graph's kernels a span or a device kernel is, and whose work it does.

A span inside a graph's call is the graph's k-th kernel of its name, if it is the k-th span of that name. The kernels of
a CUDA graph have no span: there the names that the compiler gave hold the two sequences together, and what runs between
two of them belongs to the operators that stand between them; where their numbers differ, to all of these at once.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mfubench.measure.compiled import ORDER, PRODUCTS, Compilation, CompiledKernel
from mfubench.measure.count import Count, Work, WorkKey
from mfubench.run import TOGETHER

from .attribution import Attribution

REGION, CALL, FUNCTION = "Torch-Compiled Region: ", "## Call CompiledFxGraph", "CompiledFunction"
NUM_NAMES = 3


@dataclass(slots=True)
class GraphCall:
    """One call of a compiled graph: its kernels, and how many of each name have been met."""

    kernels: Sequence[CompiledKernel]
    met: Counter[str] = field(default_factory=Counter)

    def next(self, span_name: str) -> CompiledKernel | None:
        """The kernel that a span of this name is; spans come in the order in which they ran."""
        same = [kernel for kernel in self.kernels if _is(span_name, kernel)]
        if not same:
            return None
        place = self.met[same[0].name]
        self.met[same[0].name] += 1
        return same[place] if place < len(same) else None


def _is(name: str, kernel: CompiledKernel) -> bool:
    """A generated C++ kernel's span has the graph's number before its name: graph_3_cpp_fused_add_0."""
    return name == kernel.name or (kernel.generated and name.startswith("graph_") and name.endswith(f"_{kernel.name}"))


def align(kernels: Sequence[CompiledKernel], names: Sequence[str]) -> list[CompiledKernel | None]:
    """For the device kernels ``names`` that a graph ran in this order, the kernel of the graph that each is."""
    found: list[CompiledKernel | None] = [None] * len(names)
    generated = {kernel.name for kernel in kernels if kernel.generated}
    start, foreign = 0, list[int]()
    for place, name in enumerate(names):
        if name not in generated:
            foreign.append(place)
            continue
        here = next((at for at in range(start, len(kernels)) if kernels[at].name == name), None)
        if here is None:
            continue  # run once more than the graph says
        _share(found, foreign, kernels[start:here])
        found[place], start, foreign = kernels[here], here + 1, []
    _share(found, foreign, kernels[start:])
    return found


def _share(found: list[CompiledKernel | None], places: list[int], between: Sequence[CompiledKernel]) -> None:
    left = [kernel for kernel in between if not kernel.generated]
    if not left or not places:
        return
    if len(left) != len(places):
        left = [_all_of(left), *[replace(_all_of(left), bytes=0) for _ in places[1:]]]  # whose bytes count once
    for place, kernel in zip(places, left, strict=True):
        found[place] = kernel


def _all_of(kernels: Sequence[CompiledKernel]) -> CompiledKernel:
    """Several operators as one, that serves the modules of all."""
    sizes = [kernel.bytes for kernel in kernels if kernel.bytes is not None]
    return CompiledKernel(
        name=kernels[0].name if len(kernels) == 1 else "",
        owners=tuple(dict.fromkeys(owner for kernel in kernels for owner in kernel.owners)),
        kind=next(kind for kind in ORDER if any(kernel.kind == kind for kernel in kernels)),
        repeated=all(kernel.repeated for kernel in kernels),
        bytes=sum(sizes) if len(sizes) == len(kernels) else None,
    )


def of_module(kernels: Sequence[CompiledKernel], called: str, classes: Mapping[str, type]) -> list[CompiledKernel]:
    """The kernels of a region as ``called``'s own; ``classes`` has every module's class by name.

    Equal modules share one compilation, whose kernels name the parts of the first: ``blocks.0.norm`` is
    ``blocks.1.norm`` where ``blocks.1`` was called.
    """
    return [
        replace(kernel, owners=tuple(owner and _in_place_of(owner, called, classes) for owner in kernel.owners))
        for kernel in kernels
    ]


def _in_place_of(owner: str, called: str, classes: Mapping[str, type]) -> str:
    parts = owner.split(".")
    for count in range(1, len(parts) + 1):
        outer, own = ".".join(parts[:count]), ".".join([called, *parts[count:]])
        if outer == called or (own in classes and classes[called] is classes.get(outer)):
            return own
    return owner


def regions_of_functions(threads: Iterable[Sequence[Mapping[str, Any]]]) -> dict[int, str]:
    """The region of each compiled autograd function, by sequence number: what its backward is to be looked up by.

    Each thread's events are in order, parents before children.
    """
    found = {}
    for events in threads:
        open_regions: list[tuple[float, str]] = []
        for event in events:
            while open_regions and open_regions[-1][0] <= event["ts"]:
                open_regions.pop()
            if event["name"].startswith(REGION):
                open_regions.append((event["ts"] + event["dur"], event["name"][len(REGION) :]))
            elif event["name"] == FUNCTION and open_regions:
                found[event.get("args", {}).get("Sequence number", -1)] = open_regions[-1][1]
    return found


def count_of_kernels(count: Count, attribution: Attribution, steps: int) -> Count:
    """The work of a step by the keys of its kernels, where a compiler has drawn other bounds than the modules'.

    ``count`` is of the eager step, ``attribution`` of ``steps`` compiled ones. A module's products go to the kernels
    that serve it and multiply matrices, to the key that takes longest if there are several; its other operators are in
    kernels whose bytes are known as a whole. The FLOPs stay the same. Without compiled kernels it is ``count`` itself.
    """
    busy, moved = attribution.busy, attribution.moved
    if not moved:
        return count
    homes: dict[tuple[str, str], list[WorkKey]] = defaultdict(list)
    for key in busy:
        for module in key.module.split(TOGETHER):
            homes[module, key.direction].append(key)
    compiled = {(module, key.direction) for key in moved for module in key.module.split(TOGETHER)}
    result = Count(unknown_ops=set(count.unknown_ops), impls=dict(count.impls), configs=dict(count.configs))
    result.update_bytes = count.update_bytes
    for key, work in count.work.items():
        if (key.module, key.direction) not in compiled or (key in busy and key not in moved):
            result.work[key].add(work)
        elif work.model or work.hardware:
            at_home = homes[key.module, key.direction] or [key]  # its kernels' time was lost, their bytes are known
            home = max(at_home, key=partial(_fitness, key.module, busy))
            result.work[home].add(work)
            result.work[home].bytes -= work.bytes
    for key, num_bytes in moved.items():
        result.work[key].add(Work(bytes=round(num_bytes / steps)))
    return result


def _fitness(module: str, busy: Mapping[WorkKey, float], home: WorkKey) -> tuple[bool, bool, float]:
    return home.kind in PRODUCTS, home.module == module, busy.get(home, 0.0)


def unseen(compilation: Compilation, attribution: Attribution | None) -> list[str]:
    """What of a compiled step is not known, or is another step's, in words."""
    found = [
        "memory of the compiled step: by module and kind it is the eager step's",
        "FLOPs of the compiled step: they are counted on the eager step",
    ]
    if compilation.blind:
        found.append(f"modules of the compiled step's kernels: {compilation.blind}")
    if attribution is None:
        return found
    if attribution.unknown and not compilation.blind:
        names = sorted(attribution.unknown, key=lambda name: -attribution.unknown[name])
        share = sum(attribution.unknown.values()) / attribution.span if attribution.span else 0.0
        shown = ", ".join(names[:NUM_NAMES]) + (f" and {len(names) - NUM_NAMES} more" if names[NUM_NAMES:] else "")
        found.append(f"modules of {shown} in compiled graphs: the compiler names none; {share:.1%} of the traced time")
    if attribution.unsized:
        found.append(
            f"bytes of {attribution.unsized} calls of compiled kernels: a shape depends on the data; taken as none"
        )
    if attribution.inferred:
        found.append("operators of the kernels in CUDA graphs: inferred from the order and the names of the kernels")
    if attribution.lost:
        found.append(f"kernels of {attribution.lost} launches of CUDA graphs: the trace lacks them; they count as idle")
    return found
