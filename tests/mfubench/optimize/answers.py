"""What stands in for the processes of a search: a profile, a survey, and answers to what it asks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mfubench.optimize.document import Optimization
from mfubench.optimize.search import optimize
from mfubench.optimize.state import Plan
from mfubench.optimize.survey import Survey
from mfubench.optimize.tasks import Ends, finale, identify, profile_changed, take_stock
from mfubench.optimize.trial import Trial, confirm, try_change
from mfubench.run import Run
from mfubench.workload.spec import WorkloadSpec
from tests.mfubench.report.factory import a_run

SPEC = WorkloadSpec("kunlun", size="tiny", device="cpu")
REGIONS = {"pkg.Tower": ["towers"], "pkg.Mixer": ["mixer"]}
CAUSES = {  # module -> its lost milliseconds
    "towers": {"launch": 30.0, "useful": 10.0},
    "mixer": {"inefficiency.norm": 20.0},
    "head": {"inefficiency.elementwise": 4.0},
    "(optimizer)": {"optimizer": 6.0},
}
FASTER, SLOWER, SAME = [0.2] * 16, [-0.2] * 16, [0.0, 0.001] * 8
IDENTITY = {"model": "kunlun", "model_hash": "abc", "device_name": "a CPU", "architecture": "a" * 16}


def start() -> Run:
    """A profile whose lost time is CAUSES."""
    run = a_run()
    rows = [replace(run.modules[0], name=name, causes=dict(causes)) for name, causes in CAUSES.items()]
    run.modules = rows
    run.workload |= {"model_hash": "abc", "batch_size": 32}
    return run


def survey() -> Survey:
    return Survey(
        device="cpu", dtype="fp32", batch_size=32, interpreted=False, shapes_vary=True,
        peaks={"fp32": 1.0, "bf16": 2.0}, bandwidth_gb_s=10.0, regions=REGIONS,
    )  # fmt: skip


@dataclass
class Answers:
    """A runner: what each change's trial and confirmation find, by title; FASTER unless it is said."""

    trials: Mapping[str, Trial | Exception] = field(default_factory=dict)
    confirmations: Mapping[str, Trial | Exception] = field(default_factory=dict)
    before: Callable[[str], None] = lambda title: None
    asked: list[tuple[str, str]] = field(default_factory=list)
    finales: list[Any] = field(default_factory=list)
    over_plain: float = 1.36
    plain: float = 1.1

    def __call__(self, task: Any, argument: Any, *, limit_s: float, phase_limits: Any = None, tell: Any = None) -> Any:
        if task is take_stock:
            return IDENTITY, start(), survey()
        if task is identify:
            return IDENTITY
        if task is finale:
            self.finales.append(argument)
            plain = {"plain": speedup(self.plain)} if argument.plain else {}
            end = {"end": speedup(1.5)} if argument.kept else {}
            over = {"end over plain": speedup(self.over_plain)} if plain and end else {}
            gains = {**plain, **end, **over}
            return Ends(gains, {name: step_at(gains[name]["median"]) for name in ("end", "plain") if name in gains})
        if task is profile_changed:
            return start()
        known = {try_change: self.trials, confirm: self.confirmations}[task]
        title = argument.change.title
        self.asked.append((task.__name__, title))
        if task is try_change:
            self.before(title)
        found = known.get(title, Trial(logs=list(FASTER), old_ms=80.0))
        if isinstance(found, Exception):
            raise found
        return replace(found)


def step_at(ratio: float) -> dict[str, Any]:
    return {"time_ms": speedup(80.0 / ratio), "samples_per_s": 400.0 * ratio}


def speedup(ratio: float) -> dict[str, float]:
    return {"median": ratio, "ci95_low": ratio - 0.01, "ci95_high": ratio + 0.01}


def refused(reason: str) -> Trial:
    return Trial(refused=reason, logs=list(SLOWER), old_ms=80.0)


def search(answers: Answers, out: Path | None = None, **changes: Any) -> Optimization:
    return optimize(Plan(SPEC, out, **changes), run=answers)


def everything_tried() -> list[str]:
    return ["compile Tower", "compile Mixer", "compile model", "dtype bf16", "batch_size 64"]
