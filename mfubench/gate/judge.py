"""The gate itself: take stock of every model on both sides, time them if asked to, and judge each by its limits."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import exp
from time import monotonic
from typing import Any

import torch

from mfubench.kernels.ahead import refuse_interpreter
from mfubench.measure.environment import device_uuid
from mfubench.measure.nvml import other_processes
from mfubench.measure.stats import median_ci
from mfubench.progress import Progress
from mfubench.workload.spec import WorkloadSpec

from .code import kernel_rows
from .compare import is_same_code, missing_row, model_rows
from .decide import ALPHA, LOOKS, Estimate, decided
from .rows import Row
from .source import Source
from .stocks import both_stocks
from .timing import BLOCKS, Pair, SideBroke, pairs

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
    warnings: list[str] = field(default_factory=list)


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
    stocks = both_stocks(
        question.workloads, question.targets, {"base": base, "head": head}, timed_on,
        lambda stage, done: progress(stage, share * done),
    )  # fmt: skip
    judged = Judged(warnings=_company() if timed_on == "cuda" else [])
    for index, (name, spec) in enumerate(question.workloads.items()):
        before, after = stocks[name, "base"], stocks[name, "head"]
        row = missing_row(name, before, after)
        if row is not None:
            judged.rows.append(row)
            continue
        judged.rows += model_rows(name, before, after, question.limits)
        judged.rows += kernel_rows(name, before, after, question.limits, (base.folder, head.folder))
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
            blame_environment(judged, name)
    return judged


def _company() -> list[str]:
    """That others are on the GPU before anything of ours is timed there."""
    others = other_processes(device_uuid(torch.device("cuda")))
    return [f"{others} other processes are on the GPU: intervals are wider than they need to be"] if others else []


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


def blame_environment(judged: Judged, name: str) -> None:
    """What is slower without any difference in code is no regression of it."""
    why = "base and head import the same code, need the same and compile to the same: the machine did it, or data"
    judged.rows = [
        replace(row, verdict="ENVIRONMENT", why=f"{why}; {row.why}")
        if row.benchmark == name and row.tier == "time" and row.verdict == "FAIL"
        else row
        for row in judged.rows
    ]
