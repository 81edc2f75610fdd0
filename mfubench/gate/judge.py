"""The gate itself: take stock of every model on both sides, time them if asked to, and judge each by its limits."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from math import exp
from pathlib import Path
from time import monotonic
from typing import Any

from mfubench.errors import BadInput, ToolBroke
from mfubench.kernels.ahead import refuse_interpreter
from mfubench.measure.stats import median_ci
from mfubench.progress import Progress
from mfubench.side_by_side import SharedProgress, share_out
from mfubench.worker import DONE, Place, Worker
from mfubench.workload.spec import WorkloadSpec

from .code import kernel_rows
from .compare import is_same_code, missing_row, model_rows
from .decide import ALPHA, LOOKS, Estimate, decided
from .rows import Row
from .side import take_stock
from .source import Source
from .timing import BLOCKS, Pair, SideBroke, pairs

STOCK_LIMIT_S = 1800.0
COMPILE_LIMIT_S = 900.0  # a step's kernels for one target
STOCK_SHARE = 0.3  # of a run's progress
TOLD = ("FAIL", "CHANGED")
NAMED = 5  # files, and causes, in a sentence
METHOD = (
    "Counts and compiled code are exact. Times: fresh processes of base and head in pairs, whose steps take turns "
    "(ABBA); a pair's median ratio is one sample, the interval is Student's over pairs, looked at after "
    f"{', '.join(map(str, LOOKS))} of them, and holds with 95 % for all looks and models together."
)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: ``workloads`` by the name that rows give them, ``targets`` that kernels are compiled for."""

    workloads: Mapping[str, WorkloadSpec]
    targets: Sequence[str]
    limits: Mapping[str, float]


@dataclass(slots=True)
class Judged:
    """Rows, timings as the document has them, and what else there is to say."""

    rows: list[Row] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Stocks = Mapping[tuple[str, str], Mapping[str, Any]]
"""By benchmark and side."""


def judge(
    question: Question, base: Source, head: Source, *, timed_on: str | None, budget_s: float, progress: Progress
) -> Judged:
    """Rows of every workload; ``timed_on``: the device that steps are timed on, none are where it is None.

    Raises:
        BadInput: a workload that neither side can have, or whose code is not the working directory's; kernels are to
            be compiled, and Triton's interpreter is on.
        ToolBroke: taking stock of a side broke.
    """
    if question.targets:
        refuse_interpreter()
    ends = monotonic() + budget_s
    share = STOCK_SHARE if timed_on else 1.0
    stocks = _stocks(
        question, {"base": base, "head": head}, timed_on, lambda stage, done: progress(stage, share * done)
    )
    judged = Judged()
    for index, (name, spec) in enumerate(question.workloads.items()):
        before, after = stocks[name, "base"], stocks[name, "head"]
        row = missing_row(name, before, after)
        if row is not None:
            judged.rows.append(row)
            continue
        judged.rows += model_rows(name, before, after, question.limits)
        judged.rows += kernel_rows(name, before, after, question.limits, head.folder)
        judged.notes += _notes(name, before, after)
        if timed_on is None:
            continue

        def tell(done: int, name: str = name, index: int = index) -> None:
            part = (index + done / LOOKS[-1]) / len(question.workloads)
            progress(f"timing {name}: pair {done + 1} of processes", share + (1 - share) * part)

        left = (ends - monotonic()) / (len(question.workloads) - index)
        risk = ALPHA / len(question.workloads)
        time_until_decided(
            judged, name, pairs(base, head, asdict(spec), timed_on), question.limits["step_time"], risk, left, tell
        )
        if is_same_code(before, after):
            _blame_environment(judged, name)
    return judged


def _stocks(question: Question, sides: Mapping[str, Source], timed_on: str | None, progress: Progress) -> Stocks:
    """What each side says of each workload; both sides at once, each model in a process of its own."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    told = SharedProgress(progress, len(sides) * len(question.workloads))
    # A CPU's worker would interpret the kernels that it is to compile.
    hands = {
        name: Worker(timed_on if timed_on == "cuda" else "meta", place=Place(side.folder, side.paths))
        for name, side in sides.items()
    }

    def take(_free: Worker, side: str) -> None:
        for name, spec in question.workloads.items():
            told.begins(f"{name}: counting and compiling {side}")
            with closing(hands[side]) as worker:
                paths = [str(path) for path in sides[side].paths]
                arguments = {"workload": asdict(spec), "paths": paths, "targets": list(question.targets)}
                answer = worker.run(take_stock, arguments, limit_s=STOCK_LIMIT_S, part_limit_s=COMPILE_LIMIT_S)
            if answer.status != DONE:
                raise ToolBroke(f"{name}: taking stock of {side} broke: {answer.reason}")
            found[name, side] = answer.document

    share_out(list(sides), list(hands.values()), take)
    for name in question.workloads:
        _require_ours(name, found[name, "base"], found[name, "head"], sides)
    return {place: _missing_if_new(stock, found[place[0], "head"], sides) for place, stock in found.items()}


def _require_ours(name: str, base: Mapping[str, Any], head: Mapping[str, Any], sides: Mapping[str, Source]) -> None:
    """Else both sides would be the same code, or neither a model."""
    outside = head.get("outside") or (base.get("outside") if not _is_new(base, head, sides) else None)
    if outside:
        looked = ", ".join(str(path) for path in sides["head"].paths)
        raise BadInput(
            f"{name} is imported from {outside}, which is not in {looked}: both sides would run the same code; "
            "run the gate in the repository that holds the model, and give --path FOLDER where its imports begin"
        )
    if "refused" in head and (head.get("missing") or head["refused"] == base.get("refused")):
        raise BadInput(str(head["refused"]))


def _is_new(base: Mapping[str, Any], head: Mapping[str, Any], sides: Mapping[str, Source]) -> bool:
    """Whether base found some other copy of what only head has."""
    if "outside" not in base or "file" not in head:
        return False
    with suppress(ValueError):
        return not (sides["base"].folder / Path(head["file"]).relative_to(sides["head"].folder)).exists()
    return False


def _missing_if_new(
    stock: Mapping[str, Any], head: Mapping[str, Any], sides: Mapping[str, Source]
) -> Mapping[str, Any]:
    if not _is_new(stock, head, sides):
        return stock
    return {"missing": True, "refused": f"it has no {Path(head['file']).name}"}


def _notes(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old, new = before["code"], after["code"]
    changed = [file for file in dict.fromkeys([*new, *old]) if old.get(file) != new.get(file)]
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    told = f"differs in {', '.join(changed[:NAMED])}{more}" if changed else "is the same on both sides"
    yield f"{name}: the Python code that its step imports {told}"


# Timing -----------------------------------------------------------------------------------------------------------


def time_until_decided(
    judged: Judged,
    name: str,
    offered: Generator[Pair],
    margin: float,
    risk: float,
    budget_s: float,
    tell: Callable[[int], None],
) -> None:
    """Time the pairs that are ``offered`` until they decide or the budget ends; ``judged`` gets what they come to.

    ``tell`` is given how many pairs are done; ``risk`` is the probability with which the interval may be wrong.
    """
    began, had, found = monotonic(), list[Pair](), None
    try:
        while found is None:
            if had and monotonic() - began + (monotonic() - began) / len(had) > budget_s:
                break
            tell(len(had))
            had.append(next(offered))
            found = decided([pair.log for pair in had], margin, risk)
    except SideBroke as broke:
        judged.rows.append(Row("ERROR", name, "time", "step_time", None, None, str(broke)))
        return
    finally:
        offered.close()  # ends its processes
    out_of_time = "" if found else f"; the budget ended after {len(had)} of {LOOKS[-1]} pairs"
    if found is None and len(had) > 1:  # a look that is left to it
        found = Estimate.of([pair.log for pair in had], risk / len(LOOKS))
    if found is None:
        why = f"the budget ended after one pair of processes; a verdict takes {LOOKS[0]} or more"
        judged.rows.append(Row("INCONCLUSIVE", name, "time", "step_time", None, None, why, unit="ms", margin=margin))
        return
    verdict = found.verdict(margin)
    why = f"{found.ratio - 1:+.1%} [{found.low - 1:+.1%}, {found.high - 1:+.1%}], allowed {margin:.1%}{out_of_time}"
    steps = {side: median_ci([ms for pair in had for ms in getattr(pair, f"{side}_ms")]) for side in ("base", "head")}
    old, new = (median for median, _, _ in steps.values())
    beside = _causes(judged, name) if verdict == "FAIL" else ""
    row = Row(
        verdict, name, "time", "step_time", old, new, why + beside, unit="ms", ratio=found.as_tuple, margin=margin
    )
    judged.rows.append(row)
    judged.timings.append(
        {
            "benchmark": name,
            "unit": "ms",
            "pairs": len(had),
            "blocks_a_pair": BLOCKS,
            **{f"{side}_ms": list(step) for side, step in steps.items()},
            "ratio": list(found.as_tuple),
            "margin": margin,
            "against_itself": list(Estimate.of([pair.itself for pair in had], ALPHA).as_tuple),
            "ratios_of_pairs": [exp(pair.log) for pair in had],
            "samples": [asdict(pair) for pair in had],
            "why": why,
        }
    )


def _causes(judged: Judged, name: str) -> str:
    """What else is not as it was in it."""
    told = [
        f"{row.subject or row.metric}: {row.why}"
        for row in judged.rows
        if row.benchmark == name and row.verdict in TOLD
    ]
    return f"; beside it, {'; '.join(told[:NAMED])}" if told else ""


def _blame_environment(judged: Judged, name: str) -> None:
    """What is slower without any difference in code is no regression of it."""
    why = "base and head import the same code, need the same and compile to the same: the machine did it, or data"
    judged.rows = [
        replace(row, verdict="ENVIRONMENT", why=f"{why}; {row.why}")
        if row.benchmark == name and row.tier == "time" and row.verdict == "FAIL"
        else row
        for row in judged.rows
    ]
