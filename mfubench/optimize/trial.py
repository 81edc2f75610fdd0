"""One trial: a change held against what is kept so far, in numbers and in time.

Each function runs in a process of its own (see ``isolated``), tells its phases as it goes, and takes and gives plain
values. Numbers come first: what is wrong is never timed. Then the time; then, of what is faster, the losses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from mfubench.errors import BadInput
from mfubench.exhausted import release
from mfubench.isolated import Tell
from mfubench.measure.effect import log_ratios
from mfubench.measure.timing import time_in_blocks
from mfubench.workload.compilation import settling_steps
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import NUM_ROTATED, WARMUP_STEPS, Workload, WorkloadSpec
from mfubench.workload.step import run_step

from .build import build
from .changes import BucketByLength, Change, Compile, UseBatchSize, UseImpl, added
from .gain import LOOKS, Gain, measure_gain
from .numbers import check_results, check_training, results
from .rows import with_empty_histories

Judge = Literal["time", "numbers"]
CHECKED_REQUESTS = 16  # of a batch whose numbers are checked, where batches may differ in shape
PREPARING, FIRST_STEPS, COMPILING, NUMBERS, TIMING, LOSSES = (
    "preparing",
    "running first steps",
    "compiling",
    "checking numbers",
    "timing",
    "checking losses",
)


@dataclass(frozen=True, slots=True)
class Request:
    """What to try: ``change`` on top of ``kept``. ``alpha`` is what the search leaves this trial.

    ``one_size``: no other batches can be had than those of the spec.
    """

    spec: WorkloadSpec
    kept: tuple[Change, ...]
    change: Change
    alpha: float
    judge: Judge = "time"
    one_size: bool = False


@dataclass(slots=True)
class Trial:
    """What a trial found. ``refused`` is the reason that ended it; ``logs`` are the log ratios of its blocks."""

    refused: str | None = None
    numbers: list[str] = field(default_factory=list)
    logs: list[float] = field(default_factory=list)
    old_ms: float | None = None  # median step of what was kept so far


def try_change(request: Request, tell: Tell) -> Trial:
    """Numbers, time and losses of one change."""
    trial = Trial()
    checked = _Checked(request, tell)
    trial.refused = checked.results(trial.numbers)
    if trial.refused is None and request.judge == "time":
        _time(request, trial, tell)
        trial.refused = judge_time(trial.logs, request.alpha)
    if trial.refused is None:
        trial.refused = checked.training(trial.numbers)
    return trial


def confirm(request: Request, tell: Tell) -> Trial:
    """The time once more; this process has seen nothing of the trial."""
    trial = Trial()
    _time(request, trial, tell)
    refused = judge_time(trial.logs, request.alpha)
    trial.refused = refused and f"not confirmed in a fresh process: {refused}"
    return trial


def judge_time(logs: Sequence[float], alpha: float) -> str | None:
    """Why the log ratios of blocks do not show that a change is faster, or None where they do."""
    gain = Gain.of(logs, alpha / len(LOOKS))
    if gain.verdict == "faster":
        return None
    shown = f"{gain.ratio:.3f} times as fast in {gain.blocks} blocks"  # its 95 % interval is the step's
    if gain.verdict == "not faster":
        return f"not faster by 1 %: {shown}"
    return f"undecided: {shown}; the interval that decides, wider than that of 95 %, reaches below 1 % faster"


def _time(request: Request, trial: Trial, tell: Tell) -> None:
    arms = arms_of(request.spec, [request.kept, added(request.kept, request.change)], tell)
    tell(TIMING)
    timings: list[float] = []

    def blocks(first: int, count: int) -> list[float]:
        old, new = arms.blocks(first, count)
        timings.extend(ms for block in old for ms in block)
        return log_ratios(old, new, lambda block: arms.samples[1] / arms.samples[0])

    trial.logs = measure_gain(blocks, request.alpha)
    trial.old_ms = median(timings) / arms.steps_a_turn


# Arms -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arms:
    """Workloads that are timed in turn; a turn of each is ``steps_a_turn`` steps with ``samples`` in all."""

    workloads: list[Workload]
    samples: list[int]
    steps_a_turn: int

    def blocks(self, first: int, count: int) -> list[list[tuple[float, float]]]:
        """Milliseconds ``[arm][block]`` of ``count`` blocks (``time_in_blocks``)."""
        turns = [self._turn(workload) for workload in self.workloads]
        return time_in_blocks(turns, device=self.workloads[0].device, first=first, num_blocks=count)

    def _turn(self, workload: Workload) -> Callable[[int], None]:
        def turn(index: int) -> None:
            for step in range(self.steps_a_turn):
                run_step(workload, index * self.steps_a_turn + step)

        return turn


def first_steps_of(spec: WorkloadSpec, changes: Sequence[Change]) -> str:
    """The phase of a step's first runs: a compilation where it or a change asks for one; else they are only that.

    What the model's author compiles is part of them, and as long as a compilation may take is what they get, too.
    """
    changed = any(isinstance(change, (Compile, UseImpl)) for change in changes)
    return COMPILING if changed or spec.compile != "none" else FIRST_STEPS


def arms_of(spec: WorkloadSpec, states: Sequence[Sequence[Change]], tell: Tell) -> Arms:
    """Workloads in each of ``states``, compiled and warm.

    Where one of them draws other batches from the same requests, or batches are not alike, a turn is a whole round over
    the input sets, so that every turn has the same requests in it.
    """
    tell(PREPARING)
    spec = replace(spec, steps=max(spec.steps, NUM_ROTATED))
    workloads = [build(spec, state) for state in states]
    whole = any(isinstance(change, BucketByLength) for state in states for change in state)
    whole |= any(len(set(workload.num_samples)) > 1 for workload in workloads)
    num_sets = len(workloads[0].inputs)
    for workload, state in zip(workloads, states, strict=True):
        tell(first_steps_of(spec, state))
        for index in range(max(settling_steps(workload), WARMUP_STEPS)):
            run_step(workload, index)
    samples = [sum(w.num_samples) if whole else w.num_samples[0] for w in workloads]
    return Arms(workloads, samples, num_sets if whole else 1)


# Numbers ----------------------------------------------------------------------------------------------------------


class _Checked:
    """The model as it was beside the changed one, on batches small enough to be run many times."""

    def __init__(self, request: Request, tell: Tell) -> None:
        self.request, self.tell = request, tell
        self.changes = list(added(request.kept, request.change))
        again = any(isinstance(change, Compile) and not change.dynamic for change in self.changes)
        self.spec = self.trained = replace(request.spec, steps=NUM_ROTATED)
        if not (again or request.one_size):  # a compiled region would be compiled for other shapes again
            self.spec = replace(self.spec, batch_size=CHECKED_REQUESTS)
            asked = request.spec.batch_size or CHECKED_REQUESTS
            self.trained = replace(self.spec, batch_size=min(asked, CHECKED_REQUESTS))
        # The batch's size and order are no part of what a model computes.
        self.changes = [c for c in self.changes if not isinstance(c, (UseBatchSize, BucketByLength))]

    def results(self, notes: list[str]) -> str | None:
        """Why the results of some batch are wrong, or None; what was found goes to ``notes``."""
        self.tell(PREPARING)
        try:
            original = prepare(self.spec)
        except BadInput:  # of that size; one that has another reason has it again
            self.spec = self.trained = replace(self.request.spec, steps=NUM_ROTATED)
            original = prepare(self.spec)
            notes.append(f"checked on the run's own batches, as there are none of {CHECKED_REQUESTS}")
        changed = build(self.spec, self.changes)
        self.tell(first_steps_of(self.spec, self.changes))
        results(changed, changed.inputs[0])  # a first pass, in which what is to be compiled is compiled
        self.tell(NUMBERS)
        batches = {"a batch": original.inputs[0]}
        if original.needed is not None:  # of the zoo, whose batches we know how to change
            batches["a batch with empty rows"] = with_empty_histories(original.inputs[1])
        else:
            notes.append("rows of zero length: not checked, the model makes its own batches")
        dtypes = [changed.dtype]
        if changed.dtype != "fp32" and isinstance(self.request.change, UseImpl):
            dtypes.append("fp32")  # a kernel that is wrong by less than the run's dtype would pass there
        for dtype in dtypes:
            try:
                found = check_results(original, replace(changed, dtype=dtype), batches)
            except ValueError as error:
                return str(error)
            notes.append(str(found))
            if not found.passed:
                return f"wrong numbers: {found}"
        release((), original.device)
        return None

    def training(self, notes: list[str]) -> str | None:
        """Why the losses of a short training are wrong, or None."""
        if self.spec.mode != "train":
            notes.append("losses: not checked, the mode is infer")
            return None
        self.tell(LOSSES)
        original, changed = prepare(self.trained), build(self.trained, self.changes)
        changed.inputs = original.inputs  # a batch that nobody seeded is another each time
        found = check_training(original, changed)
        notes.append(str(found))
        return None if found.passed else f"wrong losses: {found}"
