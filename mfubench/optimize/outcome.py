"""What a search leaves: its document, its recipe, and the run of its end."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mfubench.files import write_text
from mfubench.run import Run, write_run

from .changes import to_plain
from .document import NotTried, Optimization, step_of
from .gain import UNCHANGED
from .recipe import Kept, Recipe
from .remedies import WORTH, Proposal
from .state import Plan, State
from .tasks import Ends


@dataclass(slots=True)
class End:
    """What the end brought."""

    timed: Ends = field(default_factory=Ends)
    why_no_plain: str | None = None
    run: Run | None = None
    notes: list[str] = field(default_factory=list)


def document_of(plan: Plan, state: State, stopped: str, end: End, seconds: float) -> Optimization:
    """All that the search found."""
    plain = end.timed.gains.get("plain")
    start = json.loads(state.run.to_json())
    return Optimization(
        workload=state.run.workload,
        environment=state.run.environment,
        judge=plan.judge,
        budget_s=plan.budget_s,
        seconds=seconds,
        stopped=stopped,
        speedup=end.timed.gains.get("end") if state.kept else None,
        plain_compile={"speedup": plain, "reason": end.why_no_plain},
        over_plain_compile=end.timed.gains.get("end over plain"),
        in_turn=end.timed.steps,
        steps=state.steps,
        not_tried=_not_tried(state),
        kept=[change.title for change in state.kept],
        alters=[f"{change.title}: {change.alters}" for change in state.kept if change.alters],
        start=step_of(start),
        end=step_of(json.loads(end.run.to_json())) if end.run else None,
        notes=[*end.notes, *_notes(plan.judge, state), *_batches(state, end)],
        resumed=state.resumed,
    )


def write(out: Path, plan: Plan, state: State, found: Optimization, end: End) -> None:
    """Recipe, document and the end's run, in the folder ``out``."""
    if end.run is not None:
        write_run(end.run, out / "end")
    else:  # an earlier search's end is not this one's
        (out / "end" / "run.json").unlink(missing_ok=True)
    _recipe(plan, state, found).write(out / "recipe.toml")
    write_text(out / "optimize.json", found.to_json())


def _recipe(plan: Plan, state: State, found: Optimization) -> Recipe:
    description = state.run.workload
    gains = {json.dumps(step.plain): step.speedup for step in state.steps if step.kept}
    measured = {
        **{key: description[key] for key in ("mode", "dtype", "device", "batch_size", "data", "data_hash", "lock")},
        **{key: state.run.environment[key] for key in ("device_name", "torch", "triton", "date")},
        "speedup": found.speedup,
        "note": None if state.kept else UNCHANGED,
    }
    model = {key: description[key] for key in ("model", "size", "model_hash")}
    return Recipe(
        {**model, "architecture": state.identity["architecture"]},
        measured,
        plan.judge,
        tuple(Kept(change, gains.get(json.dumps(to_plain(change)))) for change in state.kept),
    )


def _not_tried(state: State) -> list[NotTried]:
    def why(proposal: Proposal) -> str:
        if proposal.why_not:
            return proposal.why_not
        if proposal.after is not None and not state.reaches(proposal):
            if state.step_of(proposal.after) is None:
                return f"follows {proposal.after.title}, which was not reached"
            return f"{proposal.after.title} was not kept"
        if proposal.predicted_ms(state.cells) > WORTH * sum(state.cells.values()):
            return "the time for trials was spent before it was decided"
        return "less than 1 % predicted"

    listed = [NotTried(p.title, p.cause(state.cells), p.predicted_ms(state.cells), why(p)) for p in state.waiting]
    return sorted(listed, key=lambda each: -each.predicted_ms)


def _batches(state: State, end: End) -> list[str]:
    """That a gain over plain torch.compile is in part that of a larger batch."""
    began = state.run.workload["batch_size"]
    ended = end.run.workload["batch_size"] if end.run else began
    if ended == began or "end over plain" not in end.timed.gains:
        return []
    return [
        f"the end has {ended} requests a step, plain torch.compile was timed with the {began} of the start: what the "
        "end gains over it, for each sample, is the batch's doing, too"
    ]


def _notes(judge: str, state: State) -> Sequence[str]:
    notes = []
    if judge == "numbers":
        notes.append("--judge numbers: kept by their numbers alone; no time was judged, and no speed is claimed")
    if state.resumed:
        notes.append("resumed: trials from the log were not repeated")
    return notes
