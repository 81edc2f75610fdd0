"""The search: profile, try what is predicted to win most, keep what is proved, until nothing is left or time is up."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from time import monotonic
from typing import Any, Protocol

from mfu_kernels.errors import InvalidArgument
from mfubench.errors import BadInput, MfubenchError, TimeUp, ToolBroke
from mfubench.identity import require_same
from mfubench.isolated import GaveUp, run_isolated
from mfubench.measure.effect import ALPHA, LEAST
from mfubench.progress import Progress, silent
from mfubench.run import Run, read_run, write_run
from mfubench.worker import LEAST_S

from .changes import Change, added, from_plain
from .document import Optimization, Step
from .log import FILE, Log, no_log, read_log
from .outcome import End, document_of, write
from .remedies import WORTH, Cells, Proposal, cells_of, proposals
from .state import Plan, State, step_taken
from .survey import OpUse, Survey
from .tasks import Finale, finale, identify, profile_changed, take_stock
from .trial import COMPILING, FIRST_STEPS, Request, Trial, confirm, try_change

FINISHING = 0.5  # of the budget at most is kept for the end: start, end and plain torch.compile in turn, its profile
REST = "the rest of the budget is kept for finishing"


class Runner(Protocol):
    """Runs a task, by default in a process of its own (`isolated.run_isolated`), made anew."""

    def __call__(self, task: Any, argument: Any, *, limit_s: float, phase_limits: Any = ..., tell: Any = ...) -> Any:
        """The task's result; raises GaveUp."""


ISOLATED: Runner = partial(run_isolated, anew=True)


def optimize(plan: Plan, *, progress: Progress = silent, run: Runner = ISOLATED) -> Optimization:
    """Search ``plan``; with a folder, leave its log, recipe, runs and document there, or go on from its log.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: a workload that does not run, another search's folder.
        ToolBroke: the profile itself broke.
    """
    search = Search(plan, progress, run)
    return search.search()


class Search:
    """One search. Nothing of torch runs in this process: what is tried can break its own only."""

    def __init__(self, plan: Plan, progress: Progress, run: Runner) -> None:
        self.plan, self.run = plan, run
        self.began = monotonic()
        self.progress = lambda stage: progress(stage, min(1.0, self.seconds / plan.budget_s))
        self.log = Log(plan.out / FILE if plan.out else None)

    @property
    def seconds(self) -> float:
        """Since the search began."""
        return monotonic() - self.began

    def search(self) -> Optimization:
        """From the profile to the document."""
        state = self._take_up() or self._begin()
        stopped = self._try_all(state)
        end = self._finish(state)
        found = document_of(self.plan, state, stopped, end, self.seconds)
        if self.plan.out is not None:
            write(self.plan.out, self.plan, state, found, end)
        self.log.append("end", {"stopped": stopped})
        return found

    # The beginning

    def _begin(self) -> State:
        identity, run, survey = self._must(take_stock, self.plan.spec, "profiling the start")
        self.log.begin(self._identity(identity))
        if self.plan.out is not None:
            write_run(run, self.plan.out / "start")
        self.log.append("survey", {"survey": asdict(survey)})
        return self._state(self._identity(identity), run, survey)

    def _take_up(self) -> State | None:
        """Where an interrupted search in this folder stood."""
        if self.log.file is None or self.plan.out is None:
            return None
        facts = read_log(self.log.file)
        try:
            surveys = [_survey(fact["survey"]) for fact in facts or () if fact["kind"] == "survey"]
            steps = [_logged(fact["step"]) for fact in facts or () if fact["kind"] == "step"]
            logged = facts and {**facts[0]["identity"]}
        except (AttributeError, BadInput, KeyError, TypeError):
            raise no_log(self.log.file) from None
        if not facts or not logged or not surveys or not (self.plan.out / "start" / "run.json").exists():
            return None
        identity = self._identity(self._must(identify, self.plan.spec, "looking at the model"))
        require_same(self.log.file, "search", logged, identity)
        state = self._state(identity, read_run(self.plan.out / "start"), surveys[-1])
        state.resumed = True
        for step in steps:
            state.take(step)
        self.log.go_on(facts)
        return state

    def _identity(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return {**found, "judge": self.plan.judge}

    def _state(self, identity: Mapping[str, Any], run: Run, survey: Survey) -> State:
        cells = cells_of(run)
        listed = proposals(run, survey, self.plan.judge)
        state = State(identity, run, survey, cells, listed, ALPHA)
        # What is worth too little now may be worth a trial once others are kept; plain is, if it is faster at the end.
        tried = {proposal.change for proposal in listed if proposal.change and proposal.predicted_ms(cells) > 0}
        state.alpha /= len(tried | {state.plain})
        return state

    def _worth(self, proposal: Proposal, cells: Cells) -> bool:
        """Whether enough is predicted; what is judged by numbers alone is tried whatever it would win."""
        if self.plan.judge == "numbers":
            return proposal.change is not None
        return proposal.predicted_ms(cells) > WORTH * sum(cells.values())

    # Trials

    def _try_all(self, state: State) -> str:
        """Try what is waiting, the best prediction first; why it stopped."""
        while True:
            deadline = self.plan.budget_s - self._finishing_s(state)
            proposal = self._next(state)
            if proposal is None or proposal.change is None:
                return "nothing is left that is predicted to win more than 1 %"
            if deadline - self.seconds < LEAST_S:
                return f"the time for trials is spent; {REST}"
            step = self._try(state, proposal, proposal.change, deadline)
            if step is None:
                return f"the time for trials ended while {proposal.title} was tried; {REST}"
            self._ended(state, step)

    def _finishing_s(self, state: State) -> float:
        """What the end may need: half of the budget, or less where plain torch.compile was timed.

        Then as long as the longest trial of what is timed there, which compiled that more often than the end does.
        """
        most = FINISHING * self.plan.budget_s
        plain = state.step_of(state.plain)
        if plain is None or plain.speedup is None:
            return most
        return min(most, max(step.seconds for step in state.steps if step.kept or step is plain))

    def _ended(self, state: State, step: Step) -> None:
        state.take(step)
        self.log.append("step", {"step": asdict(step)})

    def _next(self, state: State) -> Proposal | None:
        worth = [p for p in state.waiting if p.change and state.reaches(p) and self._worth(p, state.cells)]
        open_ = [p for p in worth if not any(other.change in p.behind for other in worth)]
        return max(open_, key=lambda p: p.predicted_ms(state.cells), default=None)

    def _try(self, state: State, proposal: Proposal, change: Change, deadline: float) -> Step | None:
        """One trial and, if it passes, its confirmation; None if the budget ended in it."""
        began = self.seconds
        request = Request(self.plan.spec, state.kept, change, state.alpha, self.plan.judge, state.survey.one_size)
        trial = self._attempt(try_change, request, proposal.title, deadline)
        if trial is None:
            return None
        measured = trial
        if trial.refused is None and self.plan.judge == "time":
            again = self._attempt(confirm, request, f"{proposal.title}: confirming", deadline)
            if again is None:
                return None
            measured, trial.refused = (again if again.logs else trial), again.refused
        return step_taken(state, proposal, change, trial, measured, self.seconds - began)

    def _attempt(self, task: Any, request: Request, title: str, deadline: float) -> Trial | None:
        """What the task found, also where it broke; None if the budget ended in it."""
        limit_s = max(LEAST_S, deadline - self.seconds)
        try:
            found: Trial = self.run(
                task, request, limit_s=limit_s, phase_limits=self._phase_limits(), tell=self._telling(title)
            )
        except (GaveUp, MfubenchError, InvalidArgument) as error:
            if self.seconds > deadline - 1.0:
                return None
            return Trial(refused=str(error))
        return found

    def _phase_limits(self) -> dict[str, float]:
        return dict.fromkeys((COMPILING, FIRST_STEPS), self.plan.compile_s)

    def _telling(self, title: str) -> Callable[[str], None]:
        return lambda phase: self.progress(f"{title}: {phase}")

    def _must(self, task: Any, argument: Any, stage: str) -> Any:
        """A task without which there is no search."""
        self.progress(stage)
        try:
            return self.run(task, argument, limit_s=self.plan.budget_s, tell=lambda phase: None)
        except GaveUp as error:
            if self.seconds >= self.plan.budget_s:
                raise TimeUp(f"{stage}: {error}; give a longer --budget") from error
            raise ToolBroke(f"{stage}: {error}") from error

    # The end

    def _finish(self, state: State) -> End:
        """The end beside the start, then both beside plain torch.compile; with the time that is left, its profile.

        Compiling the whole model may take longer than there is: what was kept has been timed by then. The profile
        compiles what was kept once more, which `mfubench profile --recipe` can do at any time.
        """
        end = End()
        if self.plan.judge == "time":
            self._compare_ends(state, end)
            self._consider_plain(state, end)
        else:
            end.why_no_plain = "--judge numbers times nothing"
        if state.kept:
            self._profile_end(state, end)
        return end

    def _profile_end(self, state: State, end: End) -> None:
        if self.plan.budget_s - self.seconds < LEAST_S:
            end.notes.append("the end was not profiled: no time was left")
            return
        self.progress("profiling the end")
        request = Finale(self.plan.spec, state.kept)
        try:
            end.run = self.run(profile_changed, request, limit_s=self._left(), tell=self._telling("the end"))
        except (GaveUp, MfubenchError, InvalidArgument) as error:
            end.notes.append(f"the end was not profiled: {error}")

    def _left(self) -> float:
        return max(LEAST_S, self.plan.budget_s - self.seconds)

    def _compare_ends(self, state: State, end: End) -> None:
        why = self._compare(state, end, None) if state.kept else None
        if state.kept == (state.plain,):
            end.why_no_plain = why
            if why is None:
                end.timed.say_of_both("end", "plain")
        else:
            end.why_no_plain = self._compare(state, end, state.plain)
        if state.kept and not end.timed.gains:
            end.notes.append(f"start and end were not timed in turn: {why}")

    def _compare(self, state: State, end: End, plain: Change | None) -> str | None:
        """Start, end and ``plain`` in turn; why that was given up, if it was."""
        stage = "start, end and plain torch.compile in turn" if plain else "start and end in turn"
        request, limits = Finale(self.plan.spec, state.kept, plain), self._phase_limits()
        try:
            end.timed = self.run(finale, request, limit_s=self._left(), phase_limits=limits, tell=self._telling(stage))
        except (GaveUp, MfubenchError, InvalidArgument) as error:
            return str(error)
        return None

    def _consider_plain(self, state: State, end: End) -> None:
        """Plain torch.compile that is faster than what was kept is tried as every change is, in what time is left."""
        if not _behind_plain(end.timed.gains) or state.plain in state.kept:
            return
        if self._left() > LEAST_S and added(state.kept, state.plain) == (state.plain,):
            proposal = next((p for p in state.waiting if p.change == state.plain), None)
            step = self._try(state, proposal, state.plain, self.plan.budget_s) if proposal else None
            if step is not None:
                self._ended(state, step)
        tried = state.step_of(state.plain)
        if tried is not None and tried.kept:
            end.timed.say_of_both("plain", "end")
            return
        why = f"it was refused: {tried.reason}" if tried else "a longer --budget gives time to check its numbers"
        end.notes.append(f"plain torch.compile of the whole model is faster than what was kept; {why}")


def _survey(given: Mapping[str, Any]) -> Survey:
    ops = {name: OpUse(**use) for name, use in given["ops"].items()}
    return Survey(**{**given, "ops": ops})


def _logged(given: Mapping[str, Any]) -> Step:
    step = Step(**given)
    from_plain(step.plain)  # which refuses what no release of ours wrote
    return step


def _behind_plain(gains: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether plain torch.compile was faster than the end, or with nothing kept than the start, by more than 1 %."""
    if "end over plain" in gains:
        return math.log(gains["end over plain"]["ci95_high"]) < -LEAST
    return "plain" in gains and math.log(gains["plain"]["ci95_low"]) > LEAST
