"""Plans: workloads on GPUs that need not be here, each with its memory, least step and most MFU."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import torch

from mfubench.attribute.roofline import DTYPE_NAMES
from mfubench.errors import BadInput
from mfubench.measure.calibrate import DTYPES
from mfubench.measure.environment import environment
from mfubench.progress import Progress, silent
from mfubench.run import FLOP_CONVENTIONS, Run
from mfubench.workload.spec import WorkloadSpec

from .gpu import Gpu, gpu_of, known_gpu
from .least import Kind, Least, at_rates, least_step, rates_of
from .needs import Needs, needs_of, work_on

ROOM = 0.9  # of a GPU's memory: an allocator had up to 11 % more than tensors asked for, in five runs on an H200
DAY_S = 86_400
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Like:
    """A run on a GPU, and which part of its time each kind of operator would have needed."""

    run: Run
    rates: dict[Kind, float]


def like(run: Run) -> Like:
    """The rates of ``run``, whose own workload is planned for them.

    Raises:
        BadInput: it is no eager run on a GPU, or nothing says where its time went.
    """
    told = run.workload
    if told["compile"] != "none":
        raise BadInput(f"{run.title} was compiled, so that its kernels are no operator's; --like takes an eager run")
    if not run.kernels:
        raise BadInput(f"{run.title} has no kernels; --like takes a run whose trace was not left out")
    names = ("model", "size", "overrides", "impl", "mode", "dtype", "batch_size", "seed", "data")
    candidates = told.get("num_candidates", 1)
    spec = WorkloadSpec(
        **{name: told[name] for name in names}, candidates=candidates if candidates > 1 else None, device="cpu"
    )
    gpu = gpu_of(run, told["dtype"])
    return Like(run, rates_of(run, least_step(work_on(gpu, spec), gpu.ceilings())))


def chosen_gpus(names: Sequence[str], run: Run | None, dtype: str, memory_gib: float | None) -> list[Gpu]:
    """The GPUs called ``names`` and that of ``run``; without either, the one that is here.

    Raises:
        BadInput: one is not known, or none is here.
    """
    found = [gpu_of(run, dtype, memory_gib)] if run is not None else []
    found += [known_gpu(name, dtype, memory_gib) for name in names]
    if found:
        return list({gpu.name: gpu for gpu in found}.values())
    if not torch.cuda.is_available():
        raise BadInput('no GPU is here; name one, as in --gpu H200 or --gpu "A100 SXM 80 GB", or give --like RUN')
    return [known_gpu(torch.cuda.get_device_name(), dtype, memory_gib)]


def make_plans(
    specs: Sequence[WorkloadSpec],
    gpus: Sequence[Gpu],
    *,
    rates: Like | None = None,
    samples_per_day: float | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The document of every workload on every GPU, ready for JSON.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: what `needs_of` raises.
    """
    specs = [spec for place, spec in enumerate(specs) if spec not in specs[:place]]
    pairs = [(spec, gpu) for spec in specs for gpu in gpus]
    counted: dict[Any, Needs] = {}
    plans = []
    for place, (spec, gpu) in enumerate(pairs):
        progress(f"counting {' '.join(filter(None, (spec.model, spec.size)))} for {gpu.name}", place / len(pairs))
        asked = (specs.index(spec), gpu.target, gpu.runs_kernels, gpu.dtype)
        if asked not in counted:
            counted[asked] = needs_of(spec, gpu)
        plans.append(_plan(counted[asked], gpu, rates, samples_per_day))
    return {
        "schema_version": SCHEMA_VERSION,
        "gpus": [asdict(gpu) for gpu in gpus],
        "like": None if rates is None else _like_document(rates),
        "samples_per_day": samples_per_day,
        "room": ROOM,
        "plans": plans,
        "flop_convention": FLOP_CONVENTIONS[specs[0].mode],
        "environment": environment(torch.device("cpu")),
    }


def _plan(needs: Needs, gpu: Gpu, rates: Like | None, samples_per_day: float | None) -> dict[str, Any]:
    least = least_step(needs.count, gpu.ceilings())
    if not least.step_ms:
        raise BadInput(f"{needs.workload['model']}: a step has no work that is known; there is nothing to plan")
    there = rates if rates is not None and rates.run.device == gpu.name else None  # another GPU has others
    model_flops, peak = needs.count.total().model, needs.memory.peak_bytes
    room = None if gpu.memory_bytes is None else ROOM * gpu.memory_bytes
    most = None if room is None else needs.most_requests(room)

    def speed(step_ms: float) -> dict[str, Any]:
        samples_per_s = needs.requests / step_ms * 1e3
        mfu = model_flops / (step_ms * gpu.datasheet_tflops * 1e9)
        return {
            "step_ms": step_ms,
            "mfu": mfu if mfu <= 1 else None,
            "samples_per_s": samples_per_s,
            "gpus": samples_per_day and ceil(samples_per_day / DAY_S / samples_per_s),
        }

    return {
        "gpu": gpu.name,
        "workload": needs.workload,
        "requests": needs.requests,
        "flops": {"model": model_flops, "hardware": needs.count.total().hardware},
        "bytes": needs.count.total().bytes,
        "unknown_ops": sorted(needs.count.unknown_ops),
        "impls": dict(sorted(needs.count.impls.items())),
        "memory": {"peak_bytes": peak, "by_kind": needs.memory.by_kind, "phase": needs.memory.phase},
        "fits": None if room is None else peak <= room,
        "most_requests": most and most[0],
        "more_may_fit": most and most[1],
        "least": {**speed(least.step_ms), "ledger": [asdict(line) for line in least.ledger]},
        "at_rates": None if there is None else speed(at_rates(least, there.rates)),
        "notes": [*needs.notes, *_without(least, there), *_unlike(needs, there), *_other_dtype(needs, gpu, least)],
    }


def _without(least: Least, rates: Like | None) -> list[str]:
    known = least.by_kind if rates is None else rates.rates
    lacking = sorted(kind for kind, ms in least.by_kind.items() if ms and kind not in known)
    return [f"the run has no rate of {', '.join(lacking)}, whose least is taken"] if lacking else []


def _unlike(needs: Needs, rates: Like | None) -> list[str]:
    """What the run does otherwise, so that its rates may be others."""
    if rates is None:
        return []
    theirs, ours = rates.run, needs.workload
    differ = [name for name in ("mode", "dtype") if theirs.workload[name] != ours[name]]
    differ += ["implementations"] if set(theirs.impls.values()) != set(needs.count.impls.values()) else []
    told = f"the run that gives the rates differs in {', '.join(differ)}: times may be far off"
    return [told] if differ else []


def _other_dtype(needs: Needs, gpu: Gpu, least: Least) -> list[str]:
    """That its products are in another dtype than the run's, against whose peak the MFU is."""
    if needs.count.total().model <= least.step_ms * gpu.datasheet_tflops * 1e9:
        return []
    dtypes = needs.count.dtypes()
    most = max(dtypes, key=lambda name: dtypes[name]) if dtypes else "another dtype"
    there_is = DTYPE_NAMES.get(most) in DTYPES["cuda"]
    hint = "give that as --dtype" if there_is or not dtypes else f"no --dtype has the peak of {most}"
    return [f"most of its products are in {most}, and the MFU is against {gpu.dtype}: {hint}"]


def _like_document(rates: Like) -> dict[str, Any]:
    run = rates.run
    return {
        "title": run.title,
        "device": run.device,
        "date": run.environment.get("date"),
        "workload": run.workload,
        "step_ms": run.step["time_ms"]["median"],
        "rates": rates.rates,
    }
