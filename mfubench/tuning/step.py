"""Tune the kernels that a workload's step launches, at its shapes, and hold the step itself to it.

What is wrong is never timed: an op whose numbers fail their contract at these shapes is left out, and so is a config
whose results differ from what is proved. The step is timed in turns, with the new configs and without, in a process
that has seen nothing of the tuning.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from mfu_kernels.errors import InvalidArgument
from mfu_kernels.lock import Entry, Places, adopt, holding, in_places, places, places_with
from mfubench.errors import BadInput, MfubenchError, ToolBroke
from mfubench.exhausted import release
from mfubench.isolated import GaveUp, Tell, run_isolated
from mfubench.kernels.apart import CASE_LIMITS_S
from mfubench.kernels.catalog import ops_with_kernels
from mfubench.kernels.check import OpResult
from mfubench.kernels.locks import read_lock, took_over
from mfubench.kernels.machine_code import toolchain
from mfubench.kernels.tune import ToTune, candidates_of, device_target, not_locked, tune_op
from mfubench.measure.compiled import run_eagerly
from mfubench.measure.effect import ALPHA, log_ratios
from mfubench.measure.environment import environment
from mfubench.measure.stats import median_ci
from mfubench.measure.timing import time_in_blocks
from mfubench.optimize.changes import BucketByLength, UseBatchSize
from mfubench.optimize.gain import Gain, measure_gain
from mfubench.optimize.recipe import Recipe, prepare_with
from mfubench.profiling import first_step
from mfubench.progress import Progress, silent
from mfubench.side_by_side import SharedProgress, one_a_core, one_thread, share_out, workers
from mfubench.worker import DONE, LEAST_S, Watch, Worker
from mfubench.workload.compilation import compiled_in_place
from mfubench.workload.prepare import device_and_dtype, prepare
from mfubench.workload.spec import NUM_ROTATED, Workload, WorkloadSpec
from mfubench.workload.step import run_passes, run_step

from .calls import Call, distinct, examples_of_calls, recording
from .check import FEW_REQUESTS, check_call, failures, too_large

NOT_REACHED = "the budget ended before it"
CHECKED, COMPILED, TUNED = 0.25, 0.45, 0.9  # of the progress, when that is done
PROVING_SHARE = 0.15  # of the budget, kept for the step itself


@dataclass(frozen=True, slots=True)
class Recorded:
    """A step's workload and device in words, its calls of ops with kernels, and those of a step of few requests."""

    workload: Mapping[str, Any]
    environment: Mapping[str, Any]
    calls: Sequence[Call]
    few: Sequence[Call]


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose step it is: a workload, with a recipe's changes where there is one."""

    spec: WorkloadSpec
    recipe: Recipe | None = None

    def workload(self, **others: Any) -> Workload:
        """It, with ``others`` in its spec.

        Raises:
            BadInput, mfu_kernels.errors.InvalidArgument: it cannot be built, or the recipe is another model's.
        """
        spec = replace(self.spec, **others)
        return prepare(spec) if self.recipe is None else prepare_with(spec, self.recipe)

    @property
    def of_any_batch(self) -> "Subject":
        """It without what a recipe changes about its batches."""
        if self.recipe is None:
            return self
        kept = tuple(one for one in self.recipe.kept if not isinstance(one.change, (UseBatchSize, BucketByLength)))
        return replace(self, recipe=replace(self.recipe, kept=kept))


@dataclass(frozen=True, slots=True)
class Proof:
    """The step to be timed, with the configs of ``entries`` and without, in ``limit_s`` seconds."""

    subject: Subject
    entries: Sequence[Entry]
    limit_s: float


@dataclass(slots=True)
class _Tuning:
    """What came of it so far, beside the entries that ``held`` before."""

    held: Sequence[Entry]
    entries: list[Entry] = field(default_factory=list)
    not_tuned: dict[str, str] = field(default_factory=dict)
    not_held: list[str] = field(default_factory=list)

    @property
    def lock(self) -> list[Entry]:
        """All that is known now."""
        return in_places(self.held, self.entries)


def tune_step(
    subject: Subject,
    *,
    again: bool = False,
    budget_s: float = inf,
    config_limit_s: float = inf,
    progress: Progress = silent,
    keep: Callable[[Sequence[Entry]], None] = lambda entries: None,
) -> dict[str, Any]:
    """Tune what the subject's step launches; ``again``: also kernels whose configs were all tried on this very GPU.

    ``keep`` is given what the lock has after each op: those of ``spec``'s own lock, and what was found in their places.

    Returns:
        As JSON: the calls, the ``entries`` that were found, the whole ``lock`` with them, what was ``not_tuned`` and
        why, and the ``step`` with its gain; ``not_held`` are calls whose numbers were too many to be held to fp64.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: no GPU, a workload that does not run, launches no kernel of ours,
            or replays its launches.
        ToolBroke: the recording broke.
    """
    began = monotonic()

    def left() -> float:
        return max(LEAST_S, budget_s - (monotonic() - began))

    spec = subject.spec
    if spec.compile == "cudagraphs":
        raise BadInput(
            "--compile cudagraphs keeps the configs that were captured; use --compile none, regions or model"
        )
    device, _ = device_and_dtype(spec)
    device_target(device)  # or there is none
    progress("recording a step's calls", 0.0)
    recorded = _record_apart(subject, left())
    found = _Tuning(held=read_lock(Path(spec.lock)) if spec.lock else [])
    shared: dict[str, Any] = {"device": device.type, "held": found.held}
    calls = _proved(recorded, shared, left, progress, found)
    shared["again"] = again
    _compile(calls, shared, left, progress)
    until = budget_s if budget_s == inf else (1 - PROVING_SHARE) * budget_s
    _tune(calls, shared, lambda: began + until - monotonic(), config_limit_s, progress, found, keep)
    progress("timing the step with the new configs and without", TUNED)
    return {
        "schema_version": 1,
        "workload": dict(recorded.workload),
        "environment": dict(recorded.environment),
        "toolchain": toolchain(),
        "calls": [{"op": call.op, "module": call.module} for call in recorded.calls],
        "entries": found.entries,
        "lock": found.lock,
        "not_tuned": found.not_tuned,
        "not_held": found.not_held,
        "step": _prove_apart(Proof(subject, found.entries, left())),
    }


# The step's calls -------------------------------------------------------------------------------------------------


def _record_apart(subject: Subject, limit_s: float) -> Recorded:
    """In a process of its own, whose memory is free for tuning afterwards."""
    try:
        recorded = run_isolated(record, subject, limit_s=limit_s)
    except GaveUp as error:
        raise ToolBroke(f"the step's calls were not recorded: {error}") from error
    if not recorded.calls:
        raise BadInput(
            f"{subject.spec.model} launches no kernel of ours with --impl {subject.spec.impl}: there is nothing to "
            f"tune; ops with kernels: {', '.join(ops_with_kernels())}"
        )
    return recorded


def record(subject: Subject, tell: Tell) -> Recorded:
    """The calls of a step's forward on its first batch, the largest first, and of one of few requests, if it can."""
    tell("building the model")
    workload = subject.workload(steps=1, compile="none")
    calls = _calls(workload)
    found = Recorded(workload.description, environment(workload.device), calls, few=calls)
    if workload.one_size:
        return found
    device = workload.device
    del workload  # whose memory the other one may need
    release((), device)
    few = subject.of_any_batch.workload(steps=1, compile="none", batch_size=FEW_REQUESTS)
    return replace(found, few=_calls(few))


def _calls(workload: Workload) -> list[Call]:
    first_step(workload)
    with run_eagerly(), recording(workload.module) as calls:
        run_passes(workload, workload.inputs[0])
    return distinct(calls)


def _proved(
    recorded: Recorded, shared: Mapping[str, Any], left: Callable[[], float], progress: Progress, found: _Tuning
) -> list[Call]:
    """The calls of ops whose numbers hold here at these shapes; of the others it is noted why they are left out."""
    found.not_held += [why for why in map(too_large, recorded.few) if why]
    few = [call for call in recorded.few if not too_large(call)]
    told = SharedProgress(lambda stage, done: progress(stage, CHECKED * done), len(few))
    results: list[OpResult] = []

    def check(worker: Worker, call: Call) -> None:
        told.begins(f"checking the numbers of {call.title}")
        case_limit_s = CASE_LIMITS_S[shared["device"]]
        answer = worker.run(check_work, {"call": call, **shared}, limit_s=left(), part_limit_s=case_limit_s)
        if answer.status == DONE:
            results.append(answer.document)
        else:
            found.not_tuned[call.op] = f"its numbers were not checked: {answer.reason}"

    with workers(shared["device"], min(one_a_core(), len(few)) or 1) as hands:
        share_out(few, hands, check)
    found.not_tuned |= failures(results)
    return [call for call in recorded.calls if call.op not in found.not_tuned]


def check_work(watch: Watch, *, call: Call, device: str, held: Sequence[Entry], without: Mapping[str, str]) -> OpResult:
    """The contract of one call of few rows."""
    adopt(held)
    with one_thread():
        return check_call(call, torch.device(device), without=without, watch=watch)


# Compiling and tuning ---------------------------------------------------------------------------------------------


def _compile(calls: Sequence[Call], shared: Mapping[str, Any], left: Callable[[], float], progress: Progress) -> None:
    """Every config that will be timed, on all cores; what does not compile is found again, and named, in tuning."""
    told = SharedProgress(lambda stage, done: progress(stage, CHECKED + (COMPILED - CHECKED) * done), len(calls))

    def compile_one(worker: Worker, call: Call) -> None:
        told.begins(f"compiling {call.title}")
        worker.run(compile_call, {"call": call, **shared}, limit_s=left())

    with workers(shared["device"], min(one_a_core(), len(calls)) or 1) as hands:
        share_out(calls, hands, compile_one)


def compile_call(
    watch: Watch, *, call: Call, device: str, again: bool, held: Sequence[Entry], without: Mapping[str, str]
) -> None:
    """Every config of the kernels that a call launches, into Triton's cache."""
    adopt(held)
    where = torch.device(device)
    wanted: ToTune = (lambda kernel, key: True) if again else not_locked(torch.cuda.get_device_name(where))
    with one_thread():
        candidates_of(examples_of_calls([call]), call.title, device_target(where), wanted)


def _tune(
    calls: Sequence[Call],
    shared: Mapping[str, Any],
    left: Callable[[], float],
    config_limit_s: float,
    progress: Progress,
    found: _Tuning,
    keep: Callable[[Sequence[Entry]], None],
) -> None:
    ops = list(dict.fromkeys(call.op for call in calls))
    with closing(Worker(shared["device"])) as worker:
        for index, op in enumerate(ops):
            if left() <= LEAST_S:
                found.not_tuned[op] = NOT_REACHED
                continue
            done = COMPILED + (TUNED - COMPILED) * index / len(ops)
            progress(f"tuning {op}", done)
            answer = worker.run(
                tune_calls,
                {**shared, "calls": [call for call in calls if call.op == op], "held": [*found.held, *found.entries]},
                limit_s=left(),
                part_limit_s=config_limit_s,
                begins=lambda part, op=op, done=done: progress(f"tuning {op}: {part}", done),  # type: ignore[misc]
            )
            found.entries += answer.document or []
            keep(found.lock)
            if answer.status != DONE:
                found.not_tuned[op] = str(answer.reason)


def tune_calls(
    watch: Watch,
    *,
    calls: Sequence[Call],
    device: str,
    again: bool,
    held: Sequence[Entry],
    without: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The entries that tuning an op at the shapes of ``calls`` finds, beside those that hold already."""
    adopt(held)
    examples = examples_of_calls(calls)
    shapes = list(examples.shapes)
    return tune_op(examples, torch.device(device), shapes=shapes, again=again, without=without, watch=watch)


# The step itself --------------------------------------------------------------------------------------------------


def _prove_apart(proof: Proof) -> dict[str, Any]:
    """The step's gain, or why there is none."""
    if not any(map(took_over, proof.entries)):
        return {"reason": "launches take what they took before: nothing faster was found"}
    try:
        return run_isolated(prove, proof, limit_s=proof.limit_s, anew=True)
    except (GaveUp, MfubenchError, InvalidArgument) as error:
        return {"reason": f"the step was not timed: {error}"}


def prove(proof: Proof, tell: Tell) -> dict[str, Any]:
    """How many times as fast the step is with the new configs, and whether that is told from 1 %."""
    began = monotonic()
    tell("building the model")
    workload = proof.subject.workload(steps=NUM_ROTATED)
    first_step(workload)
    before, after = places(), places_with(proof.entries)

    def step(held: Places) -> Callable[[int], None]:
        def run(index: int) -> None:
            with holding(held):
                run_step(workload, index)

        return run

    arms = [step(before), step(after)]
    timings: list[list[tuple[float, float]]] = [[], []]

    def blocks(first: int, count: int) -> list[float]:
        old, new = time_in_blocks(arms, device=workload.device, first=first, num_blocks=count)
        timings[0].extend(old)
        timings[1].extend(new)
        return log_ratios(old, new)

    with compiled_in_place(workload):
        tell("warming up")
        for index in range(len(workload.inputs)):
            for arm in arms:
                arm(index)
        tell("timing")
        timing = monotonic()

        def time_for(count: int) -> bool:
            now = monotonic()
            return now - began + count * (now - timing) / len(timings[0]) < proof.limit_s

        gain = Gain.of(measure_gain(blocks, ALPHA, time_for), ALPHA)
    old_ms, new_ms = (median_ci([ms for block in arm for ms in block]) for arm in timings)
    return {
        "ms_before": old_ms,
        "ms": new_ms,
        "speedup": gain.speedup,
        "blocks": gain.blocks,
        "verdict": gain.verdict,
    }
