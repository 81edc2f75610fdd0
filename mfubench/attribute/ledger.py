"""The MFU loss ledger and the module table: where the step's time went, in lines that add up to it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from mfubench.measure.count import RECOMPUTE, Count, Work, WorkKey, by_module
from mfubench.measure.memory import MemoryPeak
from mfubench.measure.scopes import DATA, OPTIMIZER, module_names
from mfubench.run import TOGETHER, KernelRow, LedgerLine, ModuleRow, family_place

from .attribution import UNOWNED, Attribution
from .roofline import Ceilings, Split, causes, verdict

WHOLE_PHASES = {OPTIMIZER: "optimizer", DATA: "data"}
NUM_TOP_MODULES = 3
NUM_KERNELS = 1000  # of a Run: enough to find what matters, and the file stays small
NO_SPAN_US = 1e-3  # the trace's own resolution


@dataclass(slots=True)
class Slices:
    """Milliseconds by module and cause, and by module and direction.

    ``floors``: by the cause that a whole phase is, what its bytes take at the copy bandwidth.
    """

    causes: dict[str, Split] = field(default_factory=lambda: defaultdict(_split))
    times: dict[str, Split] = field(default_factory=lambda: defaultdict(_split))
    floors: Split = field(default_factory=lambda: _split())


def _split() -> Split:
    return defaultdict(float)


def scales(attribution: Attribution, step_ms: float) -> tuple[float, float]:
    """From traced microseconds of work, and of the gaps in it, to milliseconds of a timed step; 0 where none was.

    A profiler slows the host. On a CPU it slows the work with it, so all is scaled alike. On a GPU kernels are taken to
    last as long as they do unwatched: where the traced step was the longer one its gaps grew, and they have what the
    kernels leave of the timed step. Where it was the shorter one, at a higher clock, all is scaled alike, too.
    """
    busy = attribution.span - attribution.idle
    if attribution.span <= NO_SPAN_US:
        return 0.0, 0.0
    slower = attribution.span > 1e3 * attribution.steps * step_ms
    if not (attribution.apart and slower and min(busy, attribution.idle) > NO_SPAN_US):
        return step_ms / attribution.span, step_ms / attribution.span
    work = min(1e-3 / attribution.steps, step_ms / busy)
    return work, (step_ms - work * busy) / attribution.idle


def slice_step(attribution: Attribution, count: Count, ceilings: Ceilings, step_ms: float) -> Slices:
    """The step's time by module and cause: the trace scaled to ``step_ms``, split on the roofline."""
    scale, gap_scale = scales(attribution, step_ms)
    slices = Slices()
    spent = _with_repeats_apart(attribution.busy, count, ceilings)
    for key, busy in spent.items():
        add_busy(slices, key, busy * scale, count.work.get(key, Work()), ceilings)
    for key in count.work.keys() - spent.keys():
        model = count.work[key].model
        if model and (attribution.unknown or not scale):  # its time is among what nobody is known to own
            slices.causes[UNOWNED]["useful"] += ceilings.flop_ms(model, ceilings.in_use_tflops)
        elif model:  # work that left no time of its own, for instance fused into another kernel
            add_busy(slices, key, 0.0, count.work[key], ceilings)
    for (module, direction), gap in attribution.host.items():
        cause = WHOLE_PHASES.get(module, "not_attributed" if module == UNOWNED else "launch")
        slices.causes[module][cause] += gap * gap_scale
        slices.times[module][direction] += gap * gap_scale
    for (module, direction), waited in attribution.communication.items():
        slices.causes[module]["communication"] += waited * scale
        slices.times[module][direction] += waited * scale
    for key, work in count.work.items():
        if key.module in WHOLE_PHASES:
            slices.floors[WHOLE_PHASES[key.module]] += ceilings.byte_ms(work.bytes)
    if count.update_bytes:
        slices.floors["optimizer"] = min(slices.floors["optimizer"], ceilings.byte_ms(count.update_bytes))
    products = (work for key, work in count.work.items() if key.module == OPTIMIZER)
    computing = sum(ceilings.flop_ms(work.hardware, ceilings.own_tflops(work)) for work in products)
    slices.floors["optimizer"] = max(slices.floors["optimizer"], computing)
    rest = step_ms - sum(sum(split.values()) for split in slices.causes.values())
    slices.causes[UNOWNED]["not_attributed"] += rest
    return slices


def _with_repeats_apart(busy: Mapping[WorkKey, float], count: Count, ceilings: Ceilings) -> dict[WorkKey, float]:
    """Time by key, with that of a function that a node of the backward pass repeats taken from this node's.

    A trace shows who runs again where that is a module. Where it is a function, the time of both is divided as the
    least times of their work are.
    """
    found = dict(busy)
    for key, work in count.work.items():
        home = key._replace(direction="bwd")
        if key.direction == RECOMPUTE and key not in busy and home in busy:
            own, rest = ceilings.least_ms(work), ceilings.least_ms(count.work[home]) if home in count.work else 0.0
            found[key] = found[home] * own / (own + rest) if own else 0.0
            found[home] -= found[key]
    return found


def add_busy(slices: Slices, key: WorkKey, time_ms: float, work: Work, ceilings: Ceilings) -> None:
    """Add the time that the device was busy with the ``work`` of ``key``."""
    slices.times[key.module][key.direction] += time_ms
    whole = WHOLE_PHASES.get(key.module, "not_attributed" if key.module == UNOWNED else None)
    if whole is not None:
        slices.causes[key.module][whole] += time_ms
    else:
        split = {RECOMPUTE: time_ms} if key.direction == RECOMPUTE else causes(time_ms, work, key.kind, ceilings)
        for cause, ms in split.items():
            slices.causes[key.module][cause] += ms


def ledger_lines(slices: Slices, step_ms: float) -> list[LedgerLine]:
    """One line a cause, in the ledger's order, with the modules that hold most of it; they sum to ``step_ms``."""
    totals = _split()
    holders: dict[str, Split] = defaultdict(_split)
    for module, split in slices.causes.items():
        for cause, ms in split.items():
            totals[cause] += ms
            holders[cause][module] += ms
    names = sorted(totals, key=lambda cause: (family_place(cause), -totals[cause]))
    return [
        LedgerLine(cause, totals[cause], totals[cause] / step_ms, _largest(holders[cause]))
        for cause in names
        if totals[cause] != 0.0
    ]


def _largest(holders: Mapping[str, float]) -> list[str]:
    ranked = sorted(holders, key=lambda name: -abs(holders[name]))
    return [name for name in ranked[:NUM_TOP_MODULES] if holders[name] and name != UNOWNED]


def module_rows(
    model: nn.Module, slices: Slices, count: Count, memory: MemoryPeak, ceilings: Ceilings, step_ms: float
) -> list[ModuleRow]:
    """One row for each module with time, work or memory of its own, slowest first; the rows sum to the totals."""
    types = {name: type(module).__name__ for module, name in module_names(model).items()}
    work = by_module(count.work)
    nothing = {"fwd": Work(), "bwd": Work()}
    rows = []
    for name in {*slices.times, *work, *(module for module, size in memory.by_module.items() if size)}:
        own, times, split = work.get(name, nothing), slices.times[name], slices.causes[name]
        time_ms, useful = sum(times.values()), own["fwd"].model + own["bwd"].model
        num_bytes = own["fwd"].bytes + own["bwd"].bytes
        rows.append(
            ModuleRow(
                name=name,
                type=types.get(name, "fused" if TOGETHER in name else "phase"),
                fwd_model_flops=own["fwd"].model,
                bwd_model_flops=own["bwd"].model,
                bytes=num_bytes,
                time_ms=time_ms,
                share=time_ms / step_ms,
                verdict="not measured" if useful and not time_ms else verdict(split),
                mfu=ceilings.flop_ms(useful, ceilings.in_use_tflops) / time_ms if useful and time_ms else None,
                memory_bytes=memory.by_module.get(name, 0),
                fwd_time_ms=times["fwd"],
                bwd_time_ms=times["bwd"] + times[RECOMPUTE],
                attainable_ms=slices.floors[WHOLE_PHASES[name]]
                if name in WHOLE_PHASES
                else ceilings.attainable_ms(useful, num_bytes),
                intensity=useful / num_bytes if num_bytes else None,
                activation_bytes=memory.kept_activations.get(name, 0),
                causes=dict(split),
            )
        )
    return sorted(rows, key=lambda row: -row.time_ms)


def kernel_rows(attribution: Attribution, step_ms: float) -> list[KernelRow]:
    """Device time by module, direction and operator in a timed step, longest first; the tail is one row."""
    scale, _ = scales(attribution, step_ms)
    rows = [
        KernelRow(key.module, key.direction, operator, key.kind, time * scale, calls / attribution.steps)
        for (key, operator), (time, calls) in attribution.kernels.items()
    ]
    rows.sort(key=lambda row: -row.time_ms)
    tail = rows[NUM_KERNELS:]
    if tail:
        rest = KernelRow("(others)", "", "", "other", sum(r.time_ms for r in tail), sum(r.calls for r in tail))
        rows = [*rows[:NUM_KERNELS], rest]
    return rows
