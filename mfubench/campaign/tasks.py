"""What each task does, in the process that runs it: it takes plain arguments and gives a plain document."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mfubench.kernels.catalog import ops_with_kernels
from mfubench.progress import Progress
from mfubench.side_by_side import one_thread
from mfubench.worker import DONE, NotHere, Watch

from .contracts import contracts
from .plan import KERNELS, TOGETHER
from .store import CACHE, Store

if TYPE_CHECKING:
    from mfu_kernels.examples import Examples
    from mfubench.ablate.ladder import Ladder as AblationLadder
    from mfubench.scaling.ladder import Ladder as ScalingLadder
    from mfubench.scaling.plan import Plan
    from mfubench.tuning.calls import Call

TIMED = "bf16"  # the dtype of benches and profiles on a GPU
BENCH_ROUNDS = 10  # half of what `mfubench kernels bench` takes: a campaign has many shapes and little time


@dataclass(frozen=True, slots=True)
class Here:
    """Where a task runs, who waits for it, and which parts of it are left out, and why."""

    device: torch.device
    store: Store
    watch: Watch
    without: Mapping[str, str]


def run_task(
    watch: Watch, *, stage: str, arguments: Mapping[str, Any], device: str, folder: Path, without: Mapping[str, str]
) -> Any:
    """Run one task on ``device``; ``folder`` is the campaign's.

    Raises:
        NotHere: the task needs another device, or a kernel that is right.
        PartBroke: a part of it made this process unfit for more.
    """
    here = Here(torch.device(device), Store(folder), watch, without)
    _use_compiled(here.store)
    _adopt_tuned(here.store)
    _adopt_peaks(here.store)
    with one_thread() if stage in TOGETHER else nullcontext():
        return _BY_STAGE[stage](dict(arguments), here)


def _use_compiled(store: Store) -> None:
    """Let this process find kernels that were compiled ahead for this campaign, and keep its own beside them."""
    if (store.folder / CACHE).is_dir():
        from triton import knobs

        knobs.cache.dir = str((store.folder / CACHE).resolve())


def _adopt_tuned(store: Store) -> None:
    """Let what this campaign has tuned hold in this process, which may be younger."""
    from mfu_kernels.lock import adopt

    adopt([entry for document in store.documents("tune") for entry in document["entries"]])


def _adopt_peaks(store: Store) -> None:
    """Let this campaign's peaks hold in this process: those of another machine, or of a busy moment, are others."""
    from mfubench.measure.calibrate import Calibration, adopt

    for document in store.documents("calibration"):
        for measured in document["by_dtype"].values():
            calibration = Calibration(**measured)
            if not calibration.busy:
                adopt(calibration)


def _calibration(_arguments: dict[str, Any], here: Here) -> Any:
    from mfubench.measure.calibrate import load_or_calibrate
    from mfubench.measure.environment import environment

    dtypes = (TIMED,) if here.device.type == "cuda" else ("fp32",)  # what the tasks run in
    found = {dtype: load_or_calibrate(here.device, dtype, refresh=True) for dtype in dtypes}
    return {
        "environment": environment(here.device),
        "by_dtype": {dtype: asdict(calibration) for dtype, calibration in found.items()},
        "busy": [calibration.busy for calibration in found.values() if calibration.busy],
    }


def _contract(arguments: dict[str, Any], here: Here) -> Any:
    from mfubench.kernels.check import check_cases, document

    examples, cases = contract_of(arguments, here.device)
    found = check_cases(arguments["op"], examples, cases, here.device, without=here.without, watch=here.watch)
    return document([found], here.device, full=False)


def contract_of(arguments: Mapping[str, Any], device: torch.device) -> "tuple[Examples, list[dict[str, Any]]]":
    """A part of an op's contract on ``device``, or the one of a step's calls of it: how to call it, and the cases."""
    from mfubench.kernels.catalog import examples_of
    from mfubench.kernels.check import cases_of

    op = arguments["op"]
    if "step" in arguments:
        from mfubench.tuning.check import FEW_REQUESTS, contract_of_calls

        return contract_of_calls(_calls_of({**arguments, "batch_size": FEW_REQUESTS}))
    cases = cases_of(examples_of(op), device, full=False, shapes=arguments["shapes"])
    return examples_of(op), cases[arguments["part"] :: arguments["parts"]]


def _compile(arguments: dict[str, Any], here: Here) -> Any:
    """Every config of the kernels that are to be tuned, so that tuning finds them in Triton's cache."""
    from mfubench.kernels.tune import candidates_of, device_target, not_locked

    wanted, target = not_locked(torch.cuda.get_device_name(here.device)), device_target(here.device)
    examples, shapes = shapes_of(arguments)
    found = [kernel for shape in shapes for kernel in candidates_of(examples, shape, target, wanted)]
    return {candidates.kernel: len(candidates.configs) for candidates in found}


def shapes_of(arguments: Mapping[str, Any]) -> "tuple[Examples, list[str]]":
    """An op at the shape that a task names, or as a workload's step calls it."""
    from mfubench.kernels.catalog import examples_of

    if "step" not in arguments:
        return examples_of(arguments["op"]), [arguments["shape"]]
    from mfubench.tuning.calls import examples_of_calls

    examples = examples_of_calls(_calls_of(arguments))
    return examples, list(examples.shapes)


def _calls_of(arguments: Mapping[str, Any]) -> "list[Call]":
    """Those of the task's op."""
    return [call for call in _calls(_specified(arguments)) if call.op == arguments["op"]]


def _called(arguments: Mapping[str, Any]) -> set[str]:
    """The ops that the task's step calls."""
    return {call.op for call in _calls(_specified(arguments))}


def _specified(arguments: Mapping[str, Any]) -> str:
    return json.dumps({key: arguments[key] for key in SPECIFIED if key in arguments and key != "compile"})


@cache
def _calls(specified: str) -> "list[Call]":
    """Of a step with all kernels: the tasks of its ops, one after the other in this process, ask for it once."""
    from mfubench.tuning.calls import calls_without_numbers
    from mfubench.workload.spec import WorkloadSpec

    chosen = {**json.loads(specified), "impl": with_kernels(ops_with_kernels()), "dtype": TIMED}
    return calls_without_numbers(WorkloadSpec(**chosen))


def _tune(arguments: dict[str, Any], here: Here) -> Any:
    from mfubench.kernels.tune import tune_op

    op, step = arguments["op"], arguments.get("step", "")
    for held in {"", step}:
        _require_right(here.store, op, step=held)
    examples, shapes = shapes_of(arguments)
    tried = [item["document"] for item in here.store.results("tune") if item["arguments"] == arguments]
    before = [entry for document in tried if document for entry in document["entries"]]  # what stands of an earlier try

    def keep(won: Sequence[Mapping[str, Any]]) -> None:
        here.watch.so_far({"entries": [*before, *won]})

    won = tune_op(
        examples,
        here.device,
        shapes=shapes,
        again=False,
        other_forms=all(op in proved(here.store, any_config=True, step=held) for held in {"", step}),
        without=here.without,
        watch=replace(here.watch, so_far=keep),
    )
    return {"entries": [*before, *won]}


def _bench(arguments: dict[str, Any], here: Here) -> Any:
    if here.device.type != "cuda":
        raise NotHere("kernels are timed on a GPU only")
    op = arguments["op"]
    _require_right(here.store, op)
    from mfubench.kernels.bench import BenchRow, bench_op, document, left_out
    from mfubench.kernels.catalog import examples_of
    from mfubench.kernels.peers import peers_of
    from mfubench.measure.environment import device_uuid
    from mfubench.measure.nvml import NvmlSampler

    examples = examples_of(op)
    peers = left_out(peers_of(op, examples, arguments["peers"], builtin=arguments["builtin"]), here.without)
    with NvmlSampler(device_uuid(here.device)) as sampler:

        def keep(rows: Sequence[BenchRow]) -> None:
            here.watch.so_far({**document(rows, here.device), "nvml": {}})  # whose window is open still

        rows = bench_op(
            op,
            examples,
            here.device,
            shapes=[arguments["shape"]],
            peers=peers,
            rounds=BENCH_ROUNDS,
            watch=replace(here.watch, so_far=keep),
        )
    return {**document(rows, here.device), "nvml": sampler.summary()}


def _require_right(store: Store, op: str, *, step: str = "") -> None:
    """Raise NotHere unless this campaign's whole contract of the op is a clean pass with what a launch takes."""
    if op not in proved(store, step=step):
        raise NotHere("its contract has not passed in this campaign, and a wrong kernel is never timed")


def proved(store: Store, *, any_config: bool = False, step: str = "") -> list[str]:
    """The ops whose whole contract is done, without a failed case of the dtype that is timed, by name.

    A case that fails with ``any_config`` counts, too; else those alone that fail with the config that a launch takes.
    ``step``: whose calls it was held on; without, the op's own contract.
    """

    def clean(result: Mapping[str, Any]) -> bool:
        failures = [case for op in result["document"]["ops"] for case in op["failures"]] if _is_done(result) else []
        cases = [failure["case"] for failure in failures if failure["case"]["dtype"] == TIMED]
        return _is_done(result) and not any(any_config or case["config"] is None for case in cases)

    held = [contract for contract in contracts(store.results("contract")) if contract.step == step]
    return [contract.op for contract in held if contract.has_all(clean)]


def _is_done(result: Mapping[str, Any]) -> bool:
    return bool(result["status"] == DONE)


SPECIFIED = ("model", "size", "mode", "impl", "compile", "batch_size")  # what a profile's task may say of its spec


def _profile(arguments: dict[str, Any], here: Here) -> Any:
    from mfubench.profiling import profile
    from mfubench.workload.spec import WorkloadSpec

    chosen = {key: arguments[key] for key in SPECIFIED if key in arguments}
    if chosen["impl"] == KERNELS:
        chosen["impl"] = _kernels(here.store, lambda: _called(arguments))
    return json.loads(profile(WorkloadSpec(**chosen, device=here.device.type)).to_json())


def _kernels(store: Store, called: Callable[[], Collection[str]] = ops_with_kernels) -> str:
    """The reference everywhere but where this campaign has proved a kernel, for what calls the ops ``called``.

    Raises:
        NotHere: no kernel is proved, or one of those that are called is not proved yet: with the reference in its place
            much more time and memory may be taken, and all would be measured again once it is.
    """
    cut_off = _cut_off(store)
    waited_for = sorted(cut_off.intersection(called())) if cut_off else []  # what is called takes long to find
    if waited_for:
        raise NotHere(f"the contract of {', '.join(waited_for)} was cut off; the same command goes on")
    ops = proved(store)
    if not ops:
        raise NotHere("no kernel's contract has passed in this campaign")
    return with_kernels(ops)


def _cut_off(store: Store) -> set[str]:
    """The ops whose contract is begun, and not all of its parts are."""
    begun = [contract for contract in contracts(store.results("contract")) if not contract.step]
    return {contract.op for contract in begun if not contract.has_all()}


def with_kernels(ops: Sequence[str]) -> str:
    """The ``impl`` that takes the kernels of ``ops``, and the reference of all others."""
    return ",".join(["reference", *(f"{op}=triton" for op in ops)])


def _road(arguments: dict[str, Any], here: Here) -> Any:
    """The ablation of Kunlun; its own folder keeps each step, so that one that is cut off stands and goes on."""
    from mfubench.ablate.ladder import Ladder
    from mfubench.report import write_page
    from mfubench.report.ablation import ablation_page
    from mfubench.workload.spec import WorkloadSpec

    place = here.store.folder / "road" / f"kunlun-{arguments['size']}"
    ladder = Ladder(WorkloadSpec("kunlun", size=arguments["size"], device=here.device.type), place)
    ladder.climb(progress=_each_step(here.watch, ladder, lambda: json.loads(ladder.ablation().to_json())))
    found = ladder.ablation()
    write_page(ablation_page(found), place)
    return json.loads(found.to_json())


def _each_step(watch: Watch, ladder: "AblationLadder | ScalingLadder", document: Callable[[], Any]) -> Progress:
    """A progress that gives ``watch`` the document whenever the ladder has made a step."""
    made = ladder.progress_made

    def keep(_stage: str, _share: float) -> None:
        nonlocal made
        if ladder.progress_made != made:
            made = ladder.progress_made
            watch.so_far(document())

    return keep


def _scale(arguments: dict[str, Any], here: Here) -> Any:
    """A ladder of sizes; its own folder keeps each training, so that one that is cut off stands and goes on."""
    from mfubench.report import write_page
    from mfubench.report.scaling import scaling_page
    from mfubench.scaling.document import scaling_document
    from mfubench.scaling.ladder import Ladder

    impl = _kernels(here.store) if here.device.type == "cuda" else "auto"
    plan = ladder_of(arguments, here.device.type, impl)
    place = here.store.folder / "scale" / arguments["folder"]
    ladder = Ladder(plan, place)
    ladder.climb(progress=_each_step(here.watch, ladder, lambda: scaling_document(ladder)))
    told = scaling_document(ladder)
    write_page(scaling_page(told), place)
    return told


def ladder_of(arguments: Mapping[str, Any], device: str, impl: str) -> "Plan":
    """What a task's ladder trains: of a log that has more impressions than it takes, as many as it takes."""
    from mfubench.scaling.plan import make_plan
    from mfubench.scaling.train import Settings
    from mfubench.scaling.windows import open_windows
    from mfubench.workload.spec import WorkloadSpec

    first, _ = open_windows(arguments["data"], arguments["evaluated"])
    models, sizes = arguments["models"], arguments["sizes"]
    return make_plan(
        WorkloadSpec(models[0], impl=impl, device=device, data=arguments["data"]),
        ",".join(models),
        ",".join(sizes),
        settings=Settings(arguments["batch_size"], samples=min(arguments["samples"], len(first.targets))),
        evaluated=arguments["evaluated"],
    )


_BY_STAGE: Mapping[str, Callable[[dict[str, Any], Here], Any]] = {
    "calibration": _calibration,
    "contract": _contract,
    "compile": _compile,
    "tune": _tune,
    "bench": _bench,
    "profile": _profile,
    "road": _road,
    "scale": _scale,
}
