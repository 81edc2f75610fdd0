"""What each task does, in the process that runs it: it takes plain arguments and gives a plain document."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .plan import KERNELS, TOGETHER
from .store import DONE, Store

TIMED = "bf16"  # the dtype of benches and profiles on a GPU
BENCH_ROUNDS = 10  # half of what `mfubench kernels bench` takes: a campaign has many shapes and little time


class NotHere(Exception):
    """Why a task cannot be run on this device; it is no failure."""


class Again(Exception):
    """The task is to be run again, in another process, with these arguments."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__("run again with other arguments")
        self.arguments = dict(arguments)


def run_task(stage: str, arguments: Mapping[str, Any], device: str, folder: Path) -> Any:
    """Run one task on ``device``; ``folder`` is the campaign's.

    Raises:
        NotHere: the task needs another device, or a kernel that is right.
        Again: the task was cut short by a part of it that can be left out.
    """
    _adopt_tuned(Store(folder))
    with _one_thread() if stage in TOGETHER else nullcontext():
        return _BY_STAGE[stage](dict(arguments), torch.device(device), folder)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, the host computes on one thread: there are as many workers as processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _adopt_tuned(store: Store) -> None:
    """Let what this campaign has tuned hold in this process, which may be younger."""
    from mfu_kernels.lock import adopt, merged

    known = merged()
    adopt([entry for result in store.done("tune") for entry in result["entries"] if entry not in known])


def _calibration(_arguments: dict[str, Any], device: torch.device, _folder: Path) -> Any:
    from mfubench.measure.calibrate import load_or_calibrate
    from mfubench.measure.environment import environment

    dtypes = (TIMED,) if device.type == "cuda" else ("fp32",)  # what the tasks run in
    found = {dtype: asdict(load_or_calibrate(device, dtype, refresh=True)) for dtype in dtypes}
    return {"environment": environment(device), "by_dtype": found}


def _contract(arguments: dict[str, Any], device: torch.device, _folder: Path) -> Any:
    from mfubench.kernels.catalog import examples_of
    from mfubench.kernels.check import check_op, document

    part = arguments["part"], arguments["parts"]
    return document([check_op(examples_of(arguments["op"]), device, part=part)], device, full=False)


def _compile(arguments: dict[str, Any], device: torch.device, _folder: Path) -> Any:
    """Every config of a shape's kernels that are to be tuned, so that tuning finds them in Triton's cache."""
    from mfubench.kernels.catalog import examples_of
    from mfubench.kernels.tune import device_target, launched_kernels, not_locked

    wanted = not_locked(torch.cuda.get_device_name(device))
    found = launched_kernels(examples_of(arguments["op"]), arguments["shape"], device_target(device), wanted)
    return {launched.kernel: len(launched.configs) for launched in found}


def _tune(arguments: dict[str, Any], device: torch.device, folder: Path) -> Any:
    from mfubench.kernels.catalog import examples_of
    from mfubench.kernels.tune import tune_op

    _require_right(Store(folder), arguments["op"])
    return {"entries": tune_op(examples_of(arguments["op"]), device, shapes=[arguments["shape"]], again=False)}


def _bench(arguments: dict[str, Any], device: torch.device, folder: Path) -> Any:
    if device.type != "cuda":
        raise NotHere("kernels are timed on a GPU only")
    op, without = arguments["op"], arguments.get("without", {})
    _require_right(Store(folder), op)
    from mfubench.kernels.bench import PeerBroke, bench_op, document
    from mfubench.kernels.catalog import examples_of
    from mfubench.measure.environment import device_uuid
    from mfubench.measure.nvml import NvmlSampler

    with NvmlSampler(device_uuid(device)) as sampler:
        try:
            rows = bench_op(
                op,
                examples_of(op),
                device,
                shapes=[arguments["shape"]],
                peers=arguments["peers"],
                without=without,
                rounds=BENCH_ROUNDS,
                checked=True,
            )
        except PeerBroke as broke:
            raise Again({**arguments, "without": {**without, broke.peer: broke.reason}}) from broke
    return {**document(rows, device), "nvml": sampler.summary()}


def _require_right(store: Store, op: str) -> None:
    """Raise NotHere unless this campaign's whole contract of the op is a clean pass."""
    if op not in proved(store):
        raise NotHere("its contract has not passed in this campaign, and a wrong kernel is never timed")


def proved(store: Store) -> list[str]:
    """The ops whose whole contract is done, without a failed case of the dtype that is timed, by name."""
    passed: dict[str, int] = {}
    for item in store.results("contract"):
        failures = [case for op in item["document"]["ops"] for case in op["failures"]] if item["status"] == DONE else []
        done = item["status"] == DONE and not any(failure["case"]["dtype"] == TIMED for failure in failures)
        op, parts = item["arguments"]["op"], item["arguments"]["parts"]
        passed[op] = passed.get(op, parts) - done
    return [op for op, missing in passed.items() if not missing]


_SPECIFIED = ("model", "size", "mode", "impl", "compile", "batch_size")  # what a profile's task may say of its spec


def _profile(arguments: dict[str, Any], device: torch.device, folder: Path) -> Any:
    import json

    from mfubench.profiling import profile
    from mfubench.workload.spec import WorkloadSpec

    chosen = {key: arguments[key] for key in _SPECIFIED if key in arguments}
    if chosen["impl"] == KERNELS:
        chosen["impl"] = _kernels(Store(folder))
    return json.loads(profile(WorkloadSpec(**chosen, device=device.type)).to_json())


def _kernels(store: Store) -> str:
    """The reference everywhere but where this campaign has proved a kernel."""
    ops = proved(store)
    if not ops:
        raise NotHere("no kernel's contract has passed in this campaign")
    return ",".join(["reference", *(f"{op}=triton" for op in ops)])


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
    "compile": _compile,
    "tune": _tune,
    "bench": _bench,
    "profile": _profile,
    "road": _road,
}
