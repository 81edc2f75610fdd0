"""What a process of one side does: take stock of a model of its code, and keep it ready for turns of timed steps."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mfubench.worker import Watch

if TYPE_CHECKING:
    from mfubench.workload.spec import Workload

HARNESS = "mfubench"  # is the one that runs the gate, on both sides: so both say the same things in the same form
ZOO = "mfu_models"
COUNTS = (
    *("parameters", "model_flops", "hardware_flops", "wide_flops", "bytes"),
    *("kept_activations", "peak_memory", "operators"),
)
TURN_S = 0.25  # of steps in a turn: far longer than handing over to it takes, and than a neighbour's short burst
Asked = Mapping[str, Any]
"""A WorkloadSpec's fields."""


def take_stock(
    watch: Watch, *, workload: Asked, paths: Sequence[str], targets: Sequence[str], without: Mapping[str, str]
) -> dict[str, Any]:
    """What a step needs, and the kernels that it launches on ``targets``, as JSON.

    ``refused`` says why a model cannot be had or run, with ``missing`` or ``outside`` if its code is not in ``paths``:
    then nothing else is there.
    """
    from mfubench.user_code import located, short

    with _no_gpu(targets) if workload["device"] == "cpu" and targets else nullcontext():
        found, prepared = _prepared_after_a_step(workload, paths)
        if prepared is None:
            return found
        try:
            found |= _counts_of_a_step(prepared)
        except Exception as error:
            return {**found, "refused": f"its step fails where it is counted: {located(error)}"}
    found |= {"kernels": {}, "not_compiled": dict(without)}
    for target in targets:
        if target in without:
            continue
        try:
            with watch.part(target):
                found["kernels"][target] = _kernels_of_a_step(workload, target)
        except Exception as error:  # a step that needs the numbers that its kernels did not write
            found["not_compiled"][target] = short(error)
    return {**found, "code": code_under(paths), "has_kernels": _has_kernels(paths)}


@contextmanager
def _no_gpu(targets: Sequence[str]) -> Iterator[None]:
    """Inside, a step whose kernels only a GPU runs goes on without what they write: what is counted is the same."""
    from mfubench.kernels.ahead import activate, recorded
    from mfubench.kernels.targets import TARGETS

    activate(TARGETS[targets[0]])
    with recorded(lambda launch: None):
        yield


def _counts_of_a_step(prepared: "Workload") -> dict[str, Any]:
    from mfubench.profiling import count_of, memory_of

    from .where import places, sources

    count, peak = count_of(prepared, 0), memory_of(prepared)
    found = places(prepared.module, count, peak, prepared.dtype)
    total = count.total()
    counts = (
        prepared.description["num_params"], total.model, total.hardware,
        sum(entry[-1] for entry in found["wide_flops"]), total.bytes,
        peak.kept_activations.total(), peak.peak_bytes, count.operators.total(),
    )  # fmt: skip
    return {
        "counts": dict(zip(COUNTS, counts, strict=True)),
        "where": found,
        "sources": sources(prepared.module, Path.cwd()),
        "peak_phase": peak.phase,
        "unknown_ops": sorted(count.unknown_ops),
        "data_hash": prepared.description["data_hash"],
        "workload": {name: prepared.description[name] for name in ("batch_size", "mode", "dtype", "device")},
    }


def _kernels_of_a_step(workload: Asked, target: str) -> list[dict[str, Any]]:
    """Those of one step."""
    from mfubench.kernels.targets import TARGETS
    from mfubench.workload.ahead import step_without_numbers
    from mfubench.workload.spec import WorkloadSpec

    from .launches import launched_kernels

    spec = WorkloadSpec(**{**workload, "steps": 1})
    return [asdict(one) for one in launched_kernels(lambda: step_without_numbers(spec), TARGETS[target])]


def _prepared_after_a_step(workload: Asked, paths: Sequence[str]) -> "tuple[dict[str, Any], Workload | None]":
    """The model of the code in ``paths``, after a first step; or why there is none."""
    from mfu_kernels.errors import InvalidArgument
    from mfubench.errors import MfubenchError, OutOfMemory
    from mfubench.profiling import first_step
    from mfubench.workload.prepare import prepare
    from mfubench.workload.spec import WorkloadSpec

    spec = WorkloadSpec(**workload)
    try:
        file = _file_of(spec.model)
    except (MfubenchError, InvalidArgument) as error:
        return {"missing": True, "refused": str(error)}, None
    if _below(file, paths) is None:
        return {"outside": str(file), "refused": f"{spec.model} is imported from {file}"}, None
    try:
        prepared = prepare(spec)
        first_step(prepared)
    except (MfubenchError, InvalidArgument) as error:
        return {"refused": str(error), "exhausted": isinstance(error, OutOfMemory)}, None
    return {"file": str(file)}, prepared


def _file_of(model: str) -> Path:
    """The file that a model's code is imported from."""
    if ":" in model:
        from mfubench.user_code import named_function
        from mfubench.workload.user import SIGNATURE

        named_function(model, SIGNATURE, "build")
        name = model.partition(":")[0]
    else:
        from mfu_models import model_spec

        model_spec(model)
        name = ZOO
    return Path(str(sys.modules[name].__file__)).resolve()


def _below(file: Path, paths: Sequence[str]) -> Path | None:
    """``file`` as it is called in the folder of ``paths`` that it lies in, None if in none."""
    return next((file.relative_to(path) for path in map(Path, paths) if file.is_relative_to(path)), None)


def code_under(paths: Sequence[str]) -> dict[str, str]:
    """A hash of each file in ``paths`` that a module of this process was imported from; the harness is not of it."""
    found = {}
    for module in _modules_under(paths):
        file = Path(str(module.__file__))
        found[str(_below(file.resolve(), paths))] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return dict(sorted(found.items()))


def _modules_under(paths: Sequence[str]) -> list[ModuleType]:
    """What this process imported from ``paths``, the harness aside."""
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or name.partition(".")[0] in (HARNESS, "__mp_main__"):
            continue
        if _below(Path(file).resolve(), paths) is not None and Path(file).is_file():
            found.append(module)
    return found


def _has_kernels(paths: Sequence[str]) -> bool:
    """Whether a module in ``paths`` that this process imported has a Triton kernel."""
    if "triton" not in sys.modules:
        return False
    from triton.runtime import Autotuner, JITFunction

    return any(
        isinstance(value, (JITFunction, Autotuner))
        for module in _modules_under(paths)
        for value in list(vars(module).values())
    )


# Timing -----------------------------------------------------------------------------------------------------------

_READY: "list[tuple[Workload, ExitStack]]" = []  # the one that this process keeps for its turns, and what holds it so


def get_ready(watch: Watch, *, workload: Asked, paths: Sequence[str], without: Mapping[str, str]) -> dict[str, Any]:
    """Build, compile and warm up the model, and keep it; ``steps``: how many make a turn, or why it is ``refused``."""
    from mfubench.measure.timing import time_steps
    from mfubench.workload.compilation import compiled_in_place
    from mfubench.workload.spec import NUM_ROTATED, WARMUP_STEPS
    from mfubench.workload.step import run_step

    found, prepared = _prepared_after_a_step(workload, paths)
    if prepared is None:
        return found
    held = ExitStack()
    held.enter_context(compiled_in_place(prepared))
    _READY[:] = [(prepared, held)]
    timings = time_steps(
        lambda index: run_step(prepared, index),
        device=prepared.device,
        num_steps=NUM_ROTATED,
        warmup=WARMUP_STEPS + NUM_ROTATED,  # each input set once at least, as each may be compiled for
    )
    return {**found, "steps": max(1, ceil(1e3 * TURN_S * len(timings) / sum(timings)))}


def take_turn(watch: Watch, *, first: int, steps: int, more: int = 0, without: Mapping[str, str]) -> float:
    """Milliseconds of a step, the mean of ``steps`` from index ``first`` on.

    Where a turn has several, one goes before that is not timed: the other side's turn has left its traces in caches.
    ``more`` steps are done in the same turn that do not count, as if each of the others took longer.
    """
    from mfubench.measure.timing import time_steps
    from mfubench.workload.step import run_step

    ((prepared, _),) = _READY
    timings = time_steps(
        lambda index: run_step(prepared, first + index),
        device=prepared.device,
        num_steps=steps + more,
        warmup=1 if steps > 1 else 0,
    )
    return sum(timings) / steps
