"""Climb the ladder: train what is not trained yet, one after the other in a worker, and keep each as it comes."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from mfu_kernels.lock import Entry, adopt, committed, merged
from mfubench.errors import BadInput
from mfubench.exhausted import ran_out_of_memory
from mfubench.identity import code_hash
from mfubench.measure import calibrate
from mfubench.measure.calibrate import Calibration, kept_calibration, load_or_calibrate
from mfubench.measure.environment import environment
from mfubench.progress import Progress, silent
from mfubench.worker import DONE, LEAST_S, Watch, Worker
from mfubench.workload.prepare import device_and_dtype
from mfubench.workload.spec import WorkloadSpec

from .plan import Plan, Training
from .store import Store
from .train import Settings, Trained, train
from .windows import describe, open_windows, predictors, sampled

# What the environment must have in common for two sittings to belong to one ladder.
SAME_ENVIRONMENT = ("torch", "triton", "device_name", "torch_threads")
NOT_REACHED, FAILED, OUT_OF_MEMORY = "not_reached", "failed", "out_of_memory"


def train_work(
    watch: Watch,
    *,
    spec: WorkloadSpec,
    settings: Settings,
    evaluated: int | None,
    configs: Sequence[Entry],
    without: Mapping[str, str],
) -> Trained | str:
    """One training as work for a worker, with ``configs`` for kernels; in words what lacked, where memory ran out."""
    adopt(configs)
    windows = open_windows(spec.data, evaluated)
    try:
        return train(spec, windows, settings, progress=lambda stage, done: watch.so_far((stage, done)))
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        return str(error)


def peak_work(
    watch: Watch, *, device: str, dtype: str, kept: Mapping[str, Any] | None, without: Mapping[str, str]
) -> dict[str, Any]:
    """What the worker's device reaches: one peak for all trainings, measured as they run unless it was ``kept``."""
    if kept is not None:
        calibrate.adopt(Calibration(**kept))
    found = load_or_calibrate(torch.device(device), dtype)
    named = {name: getattr(found, name) for name in ("date", "how", "busy")}
    return {"tflops": found.gemm_tflops[dtype], "dtype": dtype, **named}


@dataclass(slots=True)
class Found:
    """What is known so far: the trainings, how long each took in all, and why others have nothing."""

    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    predictors: Mapping[str, float]
    peak: Mapping[str, Any] | None = None
    trained: dict[Training, Trained] = field(default_factory=dict)
    wall_s: dict[Training, float] = field(default_factory=dict)
    lacking: dict[Training, tuple[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Ladder:
    """A ladder under way. With ``folder`` every training is kept there as it comes, and what is there is taken up.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: data or a device that cannot be had, a model without one of the
            sizes, or a folder that holds another ladder.
    """

    def __init__(self, plan: Plan, folder: Path | None = None) -> None:
        device, dtype = device_and_dtype(plan.spec)
        self.windows = open_windows(plan.spec.data, plan.evaluated)
        first, second = self.windows
        sees = min(plan.settings.samples or len(first.targets), len(first.targets))
        if plan.settings.batch_size > sees:
            raise BadInput(
                f"--batch-size {plan.settings.batch_size} is more than the {sees} impressions that a training sees; "
                "give a smaller one"
            )
        self.plan = replace(plan, spec=replace(plan.spec, device=device.type, dtype=dtype))
        self.trainings = plan.trainings(first.schema)
        here, data = environment(device), describe(self.windows)
        self.store = Store(
            folder,
            {
                **self.plan.identity(),
                "data": data["fingerprints"],
                **{name: here[name] for name in SAME_ENVIRONMENT},
                "code": code_hash(),
            },
        )
        seen = plan.settings.samples
        learnt = first if seen is None or seen >= len(first.targets) else sampled(first, 0, seen)
        self.found = Found(
            here, {"source": plan.spec.data, **data}, predictors((learnt, second)), self.store.read_peak()
        )
        if seen is not None and seen > len(first.targets):
            self.found.warnings.append(f"--samples {seen}: the log has {len(first.targets)} impressions to learn from")
        for training in self.trainings:
            if (kept := self.store.read(training, len(second.targets))) is not None:
                self.found.trained[training], self.found.wall_s[training] = kept

    @property
    def progress_made(self) -> tuple[int, int]:
        """How many trainings are done, of how many."""
        return len(self.found.trained), len(self.trainings)

    def climb(self, *, budget_s: float | None = None, progress: Progress = silent) -> None:
        """Do what is not done yet until ``budget_s`` are over; a training that they would cut off is not kept."""
        waiting = [training for training in self.trainings if training not in self.found.trained]
        if not waiting:
            return
        ends = inf if budget_s is None else monotonic() + budget_s
        spent = "" if budget_s is None else f"the budget of {budget_s:g} s"
        self.store.begin()
        with closing(Worker(self.plan.spec.device)) as worker:
            if self.found.peak is None or self.found.peak["busy"]:
                progress("calibrating the device's peak", 0.0)
                self._calibrate(worker, ends)
            for training in waiting:
                left = ends - monotonic()
                before = self._took(training)
                if (reason := self._failed(training)) is not None:
                    self.found.lacking[training] = reason
                elif left < LEAST_S:
                    self.found.lacking[training] = NOT_REACHED, f"{spent} ended before it"
                elif left < before:
                    why = f"{left:.0f} s of {spent} were left; another seed took {before:.0f} s"
                    self.found.lacking[training] = NOT_REACHED, why
                else:
                    self._do(worker, training, left, spent, progress)

    def _do(self, worker: Worker, training: Training, left: float, spent: str, progress: Progress) -> None:
        """One training; what it lacks is noted under its name."""
        place, begin = self.trainings.index(training), monotonic()

        def told(stage: tuple[str, float]) -> None:
            progress(f"{training.name}: {stage[0]}", (place + stage[1]) / len(self.trainings))

        told(("building the model and its batches", 0.0))
        answer = worker.run(
            train_work,
            {
                "spec": self.plan.workload(training),
                "settings": self.plan.settings,
                "evaluated": self.plan.evaluated,
                "configs": [entry for entry in merged() if entry not in committed()],  # that this process adopted
            },
            limit_s=left,
            keep=told,
        )
        if answer.status == DONE and isinstance(answer.document, Trained):
            self.found.trained[training], self.found.wall_s[training] = answer.document, monotonic() - begin
            self.store.write(training, answer.document, self.found.wall_s[training])
        elif answer.status == DONE:
            self.found.lacking[training] = OUT_OF_MEMORY, str(answer.document)
        elif monotonic() - begin >= left:
            self.found.lacking[training] = NOT_REACHED, f"{spent} ended after {left:.0f} s of it"
        else:
            self.found.lacking[training] = FAILED, answer.reason or "no reason is known"

    def _failed(self, training: Training) -> tuple[str, str] | None:
        """Why it would fail: another seed of the same point did."""
        for other, (status, reason) in self.found.lacking.items():
            if (other.model, other.size) == (training.model, training.size) and status != NOT_REACHED:
                return status, f"seed {other.seed}: {reason}" if not reason.startswith("seed ") else reason
        return None

    def _took(self, training: Training) -> float:
        """The least that another seed of the same point took; 0 where none is done."""
        same = [
            wall_s
            for other, wall_s in self.found.wall_s.items()
            if (other.model, other.size) == (training.model, training.size)
        ]
        return min(same, default=0.0)

    def _calibrate(self, worker: Worker, ends: float) -> None:
        device, dtype = self.plan.spec.device, str(self.plan.spec.dtype)
        kept = kept_calibration(torch.device(device), dtype)
        arguments = {"device": device, "dtype": dtype, "kept": kept and asdict(kept)}
        answer = worker.run(peak_work, arguments, limit_s=ends - monotonic())
        if answer.status == DONE:
            self.found.peak = answer.document
            self.store.write_peak(answer.document)
        else:
            self.found.warnings.append(f"the device's peak is not known: {answer.reason}; no fit over device time")
