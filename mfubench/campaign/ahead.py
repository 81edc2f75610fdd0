"""The kernels that a campaign will launch, compiled where no GPU is: what is rented by the minute is for measuring.

What a task launches is found by running it on tensors without numbers. Compiled kernels are kept in the campaign's
folder as Triton keeps them, by what they were compiled from and with: the campaign finds there what is the same on its
GPU, and compiles the rest itself.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from triton import knobs

from mfu_kernels.examples import Draw
from mfu_kernels.lock import entries_of, key_text, spelled
from mfu_kernels.modes import Compiled, Extent, MetaParameters, Wanted, compile_ahead, forced_config, nth_config
from mfubench.ablate.plan import make_plan
from mfubench.errors import BadInput
from mfubench.kernels.ahead import activate, call_both_ways, refuse_interpreter
from mfubench.kernels.catalog import ops_with_kernels
from mfubench.kernels.check import CONFIG, DTYPE, DTYPES
from mfubench.kernels.machine_code import toolchain
from mfubench.kernels.targets import TARGETS, require_targets
from mfubench.kernels.tune import all_tried
from mfubench.progress import Progress
from mfubench.scaling.train import learning, predicting
from mfubench.side_by_side import one_a_core, one_thread
from mfubench.user_code import short
from mfubench.worker import DONE, Watch
from mfubench.workload.ahead import step_without_numbers
from mfubench.workload.spec import WorkloadSpec

from .plan import KERNELS, STAGES, Task
from .runner import Limits, run_campaign
from .store import CACHE, Store
from .tasks import SPECIFIED, TIMED, contract_of, ladder_of, shapes_of, with_kernels

_NOWHERE = torch.device("meta")
NOT_BEGUN = "the budget ended before it"


def compile_for(
    target: str, tasks: Sequence[Task], folder: Path, *, limits: Limits, progress: Progress
) -> dict[str, Any]:
    """Compile what ``tasks`` launch on GPUs of ``target`` into the campaign's ``folder``, on all cores.

    Returns:
        As JSON: kernels by stage, what did not compile, and which tasks are not done, and why.

    Raises:
        BadInput: an unknown target, no task that launches kernels, or Triton's interpreter is on.
    """
    require_targets([target], "--ahead")
    refuse_interpreter("--ahead: ")
    cache = (folder / CACHE).resolve()
    where = {"target": target, "cache": str(cache)}
    jobs = [replace(task, arguments={**task.arguments, **where}) for task in launching(tasks)]
    if not jobs:
        raise BadInput(f"--ahead: nothing chosen launches kernels; stages that do: {', '.join(_LAUNCHES)}")
    with TemporaryDirectory(prefix="mfubench-") as temporary:
        store = Store(Path(temporary))
        run_campaign(
            jobs, store, _NOWHERE.type,
            limits=limits, progress=progress, side_by_side=min(one_a_core(), len(jobs)), together=STAGES,
            work=compile_task,
        )  # fmt: skip
        results = {job.id: store.read(job.stage, job.name) for job in jobs}
    return {
        "schema_version": 1,
        **where,
        "toolchain": _toolchain(),
        "cache_bytes": _bytes(cache),
        **_told(jobs, results),
    }


def launching(tasks: Sequence[Task]) -> list[Task]:
    """Those of ``tasks`` that launch kernels of ours, one of all that launch the same."""
    tuned = {_shape(task) for task in tasks if task.stage in ("compile", "tune")}
    found: dict[tuple[Any, ...], Task] = {}
    for task in tasks:
        if task.stage in ("contract", "road", "scale"):
            found[(task.id,)] = task
        elif task.stage in ("compile", "tune") or (task.stage == "bench" and _shape(task) not in tuned):
            found.setdefault(_shape(task), task)
        elif task.stage == "profile" and task.arguments["impl"] == KERNELS:
            step = {name: task.arguments.get(name) for name in SPECIFIED if name != "compile"}
            found.setdefault(tuple(step.values()), task)
    return list(found.values())


def _shape(task: Task) -> tuple[Any, ...]:
    return tuple(task.arguments.get(name) for name in ("op", "shape", *SPECIFIED))


def compile_task(watch: Watch, *, stage: str, arguments: Mapping[str, Any], **_: Any) -> dict[str, Any]:
    """Compile what one task of `launching` launches: the work of a campaign's worker.

    Returns:
        The kernels by name with their keys and configs, and those that did not compile, which tuning leaves out, why.
    """
    target = arguments["target"]
    knobs.cache.dir = arguments["cache"]
    activate(TARGETS[target])
    found: dict[str, dict[str, str]] = {"kernels": {}, "failed": {}}

    def keep(made: Compiled) -> None:
        name = f"{made.kernel} ({key_text(made.key)}; {spelled(made.config)})"
        wrong = isinstance(made.result, Exception)
        found["failed" if wrong else "kernels"][name] = short(made.result) if wrong else ""

    with one_thread(), compile_ahead(keep, _wanted(stage, target)):
        _LAUNCHES[stage](arguments)
    return {"kernels": sorted(found["kernels"]), "failed": found["failed"]}


def _told(jobs: Sequence[Task], results: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    done = {name: found["document"] for name, found in results.items() if found is not None and found["status"] == DONE}
    not_done = [(name, found) for name, found in results.items() if name not in done]

    def compiled(stage: str) -> set[str]:
        return {kernel for job in jobs if job.stage == stage and job.id in done for kernel in done[job.id]["kernels"]}

    stages = list(dict.fromkeys(job.stage for job in jobs))
    return {
        "stages": [
            {
                "stage": stage,
                "tasks": sum(job.stage == stage for job in jobs),
                "done": sum(job.stage == stage and job.id in done for job in jobs),
                "kernels": len(compiled(stage)),
            }
            for stage in stages
        ],
        "kernels": sorted(set().union(*map(compiled, stages))),
        "failed": {kernel: why for document in done.values() for kernel, why in document["failed"].items()},
        "not_done": {name: NOT_BEGUN if found is None else found["reason"] for name, found in not_done},
    }


def _toolchain() -> dict[str, str]:
    """What a kernel is found again by, besides its source and config."""
    return {**toolchain(), "python": platform.python_version()}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _wanted(stage: str, target: str) -> Wanted:
    """What is tuned is compiled with every config, unless all were tried already on a GPU of that generation."""

    def wanted(kernel: str, key: MetaParameters) -> Extent:
        locked = (entry for entry in entries_of(kernel, key) if entry.get("target") == target)
        stands = stage not in ("compile", "tune") or any(all_tried(entry, kernel, key) for entry in locked)
        return "launched" if stands else "all"

    return wanted


def _contract(arguments: Mapping[str, Any]) -> None:
    examples, cases = contract_of(arguments, torch.device("cuda"))
    for case in cases:
        with forced_config(nth_config(case[CONFIG])):
            call_both_ways(examples, examples.make(case, Draw(DTYPES[case[DTYPE]], _NOWHERE)))


def _at_shapes(arguments: Mapping[str, Any]) -> None:
    examples, shapes = shapes_of(arguments)
    for shape in shapes:
        call_both_ways(examples, examples.make(examples.shapes[shape], Draw(DTYPES[TIMED], _NOWHERE)))


def _profile(arguments: Mapping[str, Any]) -> None:
    step_without_numbers(_spec({key: arguments[key] for key in SPECIFIED if key in arguments}))


def _road(arguments: Mapping[str, Any]) -> None:
    plan = make_plan(_spec({"model": "kunlun", "size": arguments["size"]}))
    for setting in plan.settings:
        step_without_numbers(plan.workload(setting.name))


def _scale(arguments: Mapping[str, Any]) -> None:
    plan = ladder_of(arguments, "cuda", with_kernels(ops_with_kernels()))
    for model, size in product(plan.models, plan.sizes):
        spec = replace(plan.spec, model=model, size=size, dtype=TIMED)
        for passes in (learning, predicting):
            step_without_numbers(passes(spec, plan.settings))


def _spec(chosen: Mapping[str, Any]) -> WorkloadSpec:
    """The workload of a GPU, with kernels wherever there are any."""
    return WorkloadSpec(**{**chosen, "impl": with_kernels(ops_with_kernels()), "dtype": TIMED})


_LAUNCHES: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "contract": _contract,
    "compile": _at_shapes,
    "tune": _at_shapes,
    "bench": _at_shapes,
    "profile": _profile,
    "road": _road,
    "scale": _scale,
}
