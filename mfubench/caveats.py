"""What a Run does not know, and what bounds its claims."""

from collections.abc import Iterable, Mapping, Sequence

from torch import ScriptObject, nn

from mfu_kernels.lock import DEFAULT

from .attribute.fused import unseen
from .attribute.roofline import DTYPE_NAMES
from .attribute.steadiness import much_slower, unsteady
from .errors import BadInput, ToolBroke
from .measure.calibrate import DTYPES, Calibration
from .measure.classify import op_class
from .measure.compiled import PRODUCTS, Compilation
from .measure.nvml import missing_counters
from .measure.scopes import takes_hooks
from .passes import LATER, Passes
from .run import Run
from .workload.spec import Workload

MIN_DISTORTION, MAX_DISTORTION, MIN_COVERAGE = 0.8, 1.2, 0.95
MIN_WAITED = 0.05  # of the time of steps that a loader feeds
FUSED_ENCODER = "_transformer_encoder_layer_fwd"
MAX_UNLIKE = 1.1  # times as many operators
NUM_REASONS = 3  # why a compiler broke a graph, in a sentence
MIN_SHARE, MAX_ROOFLINE = 0.03, 1.1  # of a step: less is not told; of the roofline: more is no rounding


def not_measured(workload: Workload, passes: Passes) -> list[str]:
    """What the Run says nothing of, and why."""
    missing = []
    if passes.sheet_tflops is None:
        reason = (
            "no datasheet peak is kept for a CPU" if workload.device.type == "cpu" else "--peak measured was asked for"
        )
        missing.append(f"MFU and HFU against a datasheet: {reason}")
    missing += missing_counters(passes.nvml)
    missing += [f"{LATER[name]}: {reason}" for name, reason in passes.missing.items()]
    if passes.compilation is not None:
        missing += unseen(passes.compilation, passes.attribution)
    return missing


def broken_graphs(wanted: str, compilation: Compilation | None) -> list[str]:
    """A warning where ``--compile`` ``wanted`` the model as one graph and the compiler made several, with why."""
    if compilation is None or not compilation.breaks or wanted not in ("model", "cudagraphs"):
        return []
    reasons = [" ".join(reason.partition("\n")[0].split()) for reason, _ in compilation.breaks.most_common()]
    more = f"; and {len(reasons) - NUM_REASONS} more" if len(reasons) > NUM_REASONS else ""
    told = "; ".join(reasons[:NUM_REASONS])
    return [f"the model is no single graph: the compiler broke it {_times(compilation.breaks.total())}: {told}{more}"]


def warnings(
    run: Run,
    workload: Workload,
    calibration: Calibration,
    dtypes: Mapping[str, int],
    elsewhere: Iterable[str] = (),
) -> list[str]:
    """What bounds the claims of ``run``; ``dtypes`` has its hardware FLOPs by operand type.

    ``elsewhere``: products that ran in threads of the model's own.

    Raises:
        BadInput: more than the datasheet's peak, as it is that of another dtype than the run's products.
        ToolBroke: the same, which no device reaches.
    """
    found = _in_another_dtype(run, dtypes)
    if run.mfu is not None and max(run.mfu, run.hfu or 0.0) > 1.0:
        if found:
            raise BadInput(f"MFU {run.mfu:.1%} of the datasheet peak: {found[0]}")
        raise ToolBroke(
            f"MFU {run.mfu:.1%}, HFU {run.hfu:.1%} of the datasheet peak: the FLOP count or the peak is wrong"
        )
    if not found and max(run.mfu_of_measured_peak or 0.0, run.hfu_of_measured_peak or 0.0) > 1.0:
        found.append("above 100 % of the measured peak: calibrate again with `mfubench doctor --calibrate`")
    if calibration.busy:
        found.append(
            f"the peaks were measured on a busy machine ({calibration.busy}): they are too low, and not kept; run it "
            "again when nothing else runs"
        )
    found += _of_unknown_flops(run, sorted(elsewhere))
    if (run.trace["distortion"] or 0.0) > MAX_DISTORTION:
        found.append(
            f"the profiler made the traced step {run.trace['distortion']:.2f} times as long; shares are less sure"
        )
    if 0 < (run.trace["distortion"] or 0.0) < MIN_DISTORTION:
        found.append(
            f"the traced step took {run.trace['distortion']:.2f} times as long as the timed one, with all that tracing "
            "adds: something else ran while it was timed; run it again when nothing else runs"
        )
    found += _of_unlike_steps(run)
    low = min(
        (line for line in run.ledger if line.cause.startswith("inefficiency")), key=lambda line: line.ms, default=None
    )
    if low is not None and low.share < -0.01:
        found.append(
            f"{low.cause} is {low.share:.1%} of the step: faster than its floor, so what it moves stays in a cache, "
            "as in a small step, or a formula is off, or the peak: `mfubench doctor --calibrate` measures it anew"
        )
    else:
        found += _beyond_the_roofline(run)
    rest = sum(line.share for line in run.ledger if line.cause == "not_attributed")
    if rest < -MIN_SHARE:
        found.append(
            f"not_attributed is {rest:.1%} of the step: the other lines are more than it, as where the trace does not "
            "tell whose some work is, which then stands in them twice"
        )
    found += _off_its_fused_path(run, workload.module) + _untuned(run)
    found += unsteady(run) + _of_the_loader(run)
    found += [f"a pass was left out: {line}" for line in run.not_measured if line.startswith(tuple(LATER.values()))]
    found += _unhooked(workload.module) + _packed(workload.module)
    twice = _shared_modules(workload.module)
    if twice:
        found.append(f"modules under two names are counted once, under the first: {', '.join(twice)}")
    return found


def _of_unlike_steps(run: Run) -> list[str]:
    """That the traced steps do unlike work, so that their mean is not the mean step's."""
    operators = run.trace.get("operators") or [0]
    if max(operators) <= MAX_UNLIKE * min(operators):
        return []
    return [
        f"the traced steps ran {' and '.join(map(str, operators))} operators, as where an optimizer updates in some "
        "steps only: the ledger is that of these, and its shares depend on which they are"
    ]


def _of_unknown_flops(run: Run, elsewhere: Sequence[str]) -> list[str]:
    """That FLOPs are missing, however little time that takes: a product that is not counted makes every MFU too low."""
    coverage, unknown, found = run.flops["coverage"], run.flops["unknown_ops"], []
    if coverage is None:
        return []
    products = [name for name in unknown if op_class(name) in PRODUCTS]
    if unknown and (coverage < MIN_COVERAGE or products or not run.flops["model"]):
        found.append(
            f"FLOP coverage {coverage:.0%}: nothing is known of the FLOPs of {', '.join(unknown)}, and the true MFU is "
            "higher than what is told"
        )
    elif not run.flops["hardware"]:
        found.append(
            "no matrix product was seen in a step: if the model has some, they run where torch's dispatcher does not "
            "see them, as in AOTInductor, ONNX Runtime or numpy, and its MFU is unknown"
        )
    if elsewhere:
        found.append(
            f"{', '.join(elsewhere)} ran in threads of the model's own: their FLOPs and time are "
            "not counted, and the true MFU is higher than what is told"
        )
    return found


def _beyond_the_roofline(run: Run) -> list[str]:
    """Modules and phases of some size that took less than the roofline allows, whatever others lose."""
    beyond = [
        row
        for row in run.modules
        if row.share > MIN_SHARE and row.attainable_ms > MAX_ROOFLINE * row.time_ms and "amortized" not in row.causes
    ]
    if not beyond:
        return []
    named = ", ".join(f"{row.name} ({row.time_ms:.3g} ms for at least {row.attainable_ms:.3g})" for row in beyond[:3])
    more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
    return [
        f"faster than the roofline allows: {named}{more}; what they move stays in a cache, or the measured bandwidth "
        "or peak is too low: `mfubench doctor --calibrate` measures them anew"
    ]


def _off_its_fused_path(run: Run, module: nn.Module) -> list[str]:
    """Torch's encoder layer in inference, which one operator computes only where no module of it has a hook."""
    layers = [item for item in module.modules() if isinstance(item, nn.TransformerEncoderLayer) and not item.training]
    traced = any(row.operator.endswith(FUSED_ENCODER) for row in run.kernels)  # as where it is compiled
    if not layers or traced or run.workload["mode"] != "infer" or run.workload["dtype"] not in ("fp32", "tf32"):
        return []
    return [
        "the trace's hooks take nn.TransformerEncoderLayer off its fused path in inference: the step was timed on that "
        "path, the ledger is of what runs without it"
    ]


def _untuned(run: Run) -> list[str]:
    """Kernels of ours that a GPU ran with configs that were measured on none of its generation at such shapes."""
    untuned = sorted({row.kernel for row in run.kernel_configs if row.origin == DEFAULT})
    if not untuned or run.workload["device"] != "cuda":
        return []
    return [
        f"default configs, measured nowhere at such shapes, were taken for {', '.join(untuned)}: `mfubench kernels "
        "tune` looks for faster ones"
    ]


def _in_another_dtype(run: Run, dtypes: Mapping[str, int]) -> list[str]:
    """That most products are in another dtype than the run's, whose peak its MFU is against."""
    most, dtype = max(dtypes, key=lambda name: dtypes[name], default="none"), run.peak["dtype"]
    if not dtypes.get(most) or DTYPE_NAMES.get(most, most) in (dtype, "fp32" if dtype == "tf32" else dtype):
        return []
    named = DTYPE_NAMES.get(most)
    there_is = named in DTYPES.get(run.workload["device"], ())
    hint = f"give --dtype {named}" if there_is else f"no --dtype has the peak of {most}, so its MFU means little"
    return [f"most of its products are in {most}, and the peak is that of {dtype}: {hint}"]


def _of_the_loader(run: Run) -> list[str]:
    """That steps wait for their batches, and how the loader can be made quicker."""
    loader = run.step.get("loader")
    if loader is None:
        return []
    again, steps, found = loader["begun_again"], len(loader["timings_ms"]), []
    if (times := much_slower(loader["timings_ms"])) is not None:
        found.append(
            f"some steps that the loader feeds were much slower: their mean is {times:.2f} times their median, "
            "as where batches come in bursts, or one of a new shape has something compiled, tuned or captured for it"
        )
    if loader["waited_share"] < MIN_WAITED:
        return found
    found.append(
        f"of the time of steps that its loader feeds, {loader['waited_share']:.0%} is waiting for batches, and the "
        "ledger is that of steps whose batches are at hand: give the loader more workers (num_workers), let them work "
        "further ahead (prefetch_factor), pin its memory, or do less for each row"
    )
    if again:
        found.append(
            f"in {steps} steps the loader ended and was begun anew {_times(again)}, which they waited for, too"
        )
    return found


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _packed(module: nn.Module) -> list[str]:
    holders = [item for item in module.modules() if any(isinstance(held, ScriptObject) for held in vars(item).values())]
    if not holders:
        return []
    return [
        f"weights that are packed in {len(holders)} objects are no tensors: the memory and parameters told lack them"
    ]


def _unhooked(module: nn.Module) -> list[str]:
    names = [name for name, item in module.named_modules() if not takes_hooks(item)]
    outer = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    if not names:
        return []
    which = "the whole model" if "" in names else ", ".join(outer)
    return [f"scripted modules do not say when they run, and their work stands at the one around: {which}"]


def _shared_modules(module: nn.Module) -> list[str]:
    first: Mapping[nn.Module, str] = {item: name for name, item in module.named_modules()}
    every = module.named_modules(remove_duplicate=False)
    return [f"{first[item]} = {name}" for name, item in every if first[item] != name]
