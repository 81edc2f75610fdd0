"""What a search is asked, and where it stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfubench.measure.effect import ALPHA
from mfubench.run import Run
from mfubench.workload.regions import MODEL
from mfubench.workload.spec import WorkloadSpec

from .changes import Change, Compile, added, from_plain, to_plain
from .document import Step
from .gain import Gain
from .remedies import Cells, Proposal
from .survey import Survey
from .trial import Judge, Trial


@dataclass(frozen=True, slots=True)
class Plan:
    """What to search and how long: ``compile_s`` is what compiling may take in one trial."""

    spec: WorkloadSpec
    out: Path | None = None
    budget_s: float = 600.0
    compile_s: float = 240.0
    judge: Judge = "time"


@dataclass(slots=True)
class State:
    """Where a search stands."""

    identity: Mapping[str, Any]
    run: Run
    survey: Survey
    cells: Cells
    waiting: list[Proposal]
    alpha: float
    steps: list[Step] = field(default_factory=list)
    kept: tuple[Change, ...] = ()
    resumed: bool = False

    @property
    def plain(self) -> Change:
        """Plain torch.compile of the whole model, which is a change like others and what the end is shown beside."""
        return Compile(MODEL, dynamic=self.survey.shapes_vary)

    def take(self, step: Step) -> None:
        """A trial has ended."""
        change = from_plain(step.plain)
        self.steps.append(step)
        proposal = next((p for p in self.waiting if p.change == change), None)
        self.waiting = [p for p in self.waiting if p.change != change]
        if step.kept:
            self.kept = added(self.kept, change)
            if proposal is not None:
                proposal.take(self.cells, step.measured_ms)
            self.waiting = [p for p in self.waiting if p.change is None or not change.excludes(p.change)]

    def step_of(self, change: Change) -> Step | None:
        """The trial of ``change``, if there was one."""
        return next((step for step in self.steps if step.plain == to_plain(change)), None)

    def reaches(self, proposal: Proposal) -> bool:
        """Whether what the proposal goes further than is kept."""
        return proposal.after is None or proposal.after in self.kept


def step_taken(state: State, proposal: Proposal, change: Change, trial: Trial, measured: Trial, seconds: float) -> Step:
    """What is told of a trial; ``measured`` is the one whose times count."""
    gain = Gain.of(measured.logs, ALPHA) if measured.logs else None
    old_ms = measured.old_ms or 0.0

    def won(ratio: float) -> float:
        return old_ms * (1 - 1 / ratio)

    return Step(
        change=proposal.title,
        plain=to_plain(change),
        cause=proposal.cause(state.cells),
        predicted_ms=proposal.predicted_ms(state.cells),
        measured_ms=won(gain.ratio) if gain else None,
        ci95=[won(gain.low), won(gain.high)] if gain else None,
        speedup=gain.speedup if gain else None,
        kept=trial.refused is None,
        reason=trial.refused or _why_kept(gain),
        alters=change.alters,
        numbers=trial.numbers,
        seconds=seconds,
        old_ms=old_ms if gain else None,
        new_ms=old_ms / gain.ratio if gain else None,
    )


def _why_kept(gain: Gain | None) -> str:
    if gain is None:
        return "numbers right; time not judged"
    return f"numbers right; {gain.ratio:.3f} times as fast, confirmed in a fresh process"
