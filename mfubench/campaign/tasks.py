"""What each task does, in the process that runs it: it takes plain arguments and gives a plain document."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .store import DONE, Store

BENCH_ROUNDS = 10  # half of what `mfubench kernels bench` takes: a campaign has many shapes and little time


class NotHere(Exception):
    """Why a task cannot be run on this device; it is no failure."""


def run_task(stage: str, arguments: Mapping[str, Any], device: str, folder: Path) -> Any:
    """Run one task on ``device``; ``folder`` is the campaign's.

    Raises:
        NotHere: the task needs another device, or a kernel that is right.
    """
    return _BY_STAGE[stage](dict(arguments), torch.device(device), folder)


def _calibration(_arguments: dict[str, Any], device: torch.device, _folder: Path) -> Any:
    from mfubench.measure.calibrate import DTYPES, load_or_calibrate
    from mfubench.measure.environment import environment

    dtypes = DTYPES[device.type] if device.type == "cuda" else ("fp32",)
    found = {dtype: asdict(load_or_calibrate(device, dtype, refresh=True)) for dtype in dtypes}
    return {"environment": environment(device), "by_dtype": found}


def _contract(arguments: dict[str, Any], device: torch.device, _folder: Path) -> Any:
    from mfubench.kernels.catalog import examples_of
    from mfubench.kernels.check import check_op, document

    return document([check_op(examples_of(arguments["op"]), device)], device, full=False)


def _bench(arguments: dict[str, Any], device: torch.device, folder: Path) -> Any:
    if device.type != "cuda":
        raise NotHere("kernels are timed on a GPU only")
    if _contract_failed(Store(folder), arguments["op"]):
        raise NotHere("its contract has not passed in this campaign, and a wrong kernel is never timed")
    from mfubench.kernels.bench import bench_all, document
    from mfubench.measure.environment import device_uuid
    from mfubench.measure.nvml import NvmlSampler

    with NvmlSampler(device_uuid(device)) as sampler:
        rows, lock = bench_all(
            [arguments["op"]], device, shapes=(), peer=None, rounds=BENCH_ROUNDS, tune=arguments["tune"], checked=True
        )
    return {**document(rows, device), "nvml": sampler.summary(), "lock": lock}


def _contract_failed(store: Store, op: str) -> bool:
    """Whether this campaign's contract result of the op is anything but a clean pass."""
    found = store.read("contract", op)
    return found is None or found["status"] != DONE or any(item["failed"] for item in found["document"]["ops"])


def _profile(arguments: dict[str, Any], device: torch.device, _folder: Path) -> Any:
    import json

    from mfubench.profiling import profile
    from mfubench.workload.spec import WorkloadSpec

    chosen = {key: arguments[key] for key in ("model", "size", "mode", "impl", "compile")}
    return json.loads(profile(WorkloadSpec(**chosen, device=device.type)).to_json())


def _road(arguments: dict[str, Any], device: torch.device, folder: Path) -> Any:
    """The ablation of Kunlun; its own folder keeps each step, so that one that is cut off goes on."""
    import json

    from mfubench.ablate.ladder import Ladder
    from mfubench.report import write_page
    from mfubench.report.ablation import ablation_page
    from mfubench.workload.spec import WorkloadSpec

    place = folder / "road" / f"kunlun-{arguments['size']}"
    ladder = Ladder(WorkloadSpec("kunlun", size=arguments["size"], device=device.type), place)
    ladder.climb()
    found = ladder.ablation()
    write_page(ablation_page(found), place)
    return json.loads(found.to_json())


_BY_STAGE: Mapping[str, Callable[[dict[str, Any], torch.device, Path], Any]] = {
    "calibration": _calibration,
    "contract": _contract,
    "bench": _bench,
    "profile": _profile,
    "road": _road,
}
