"""The gate itself: take stock of every model on both sides, time them if asked to, and judge each by its limits."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from mfubench.kernels.ahead import refuse_interpreter
from mfubench.measure.effect import ALPHA
from mfubench.measure.environment import device_uuid
from mfubench.measure.nvml import other_processes
from mfubench.measure.timing import wait_for
from mfubench.progress import Progress
from mfubench.workload.spec import WorkloadSpec

from .code import kernel_rows
from .compare import Limits, Stock, is_same_code, missing_row, model_rows
from .decide import LOOKS
from .rows import Row
from .source import Source
from .step_time import time_row
from .stocks import both_stocks
from .timing import Pair, SideBroke, pairs, until_decided

STOCK_SHARE = 0.3  # of a run's progress
NAMED = 5  # files, in a sentence
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
    """Rows, timings and workloads as the document has them, and what else there is to say."""

    rows: list[Row] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)
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
    judged = Judged(warnings=_warning_of_others() if timed_on == "cuda" else [])
    for index, (name, spec) in enumerate(question.workloads.items()):
        before, after = stocks[name, "base"], stocks[name, "head"]
        missing = missing_row(name, before, after)
        if missing is not None:
            judged.rows.append(missing)
            continue
        exact = _exact_rows(name, before, after, question.limits, (base.folder, head.folder))
        judged.rows += exact
        judged.notes += _changed_files(name, before, after)
        judged.warnings += _kernels_not_launched(name, after)
        judged.workloads[name] = _workload_as_counted(spec, after)
        if timed_on is None:
            continue

        def tell(done: int, name: str = name, index: int = index) -> None:
            part = (index + done / LOOKS[-1]) / len(question.workloads)
            progress(f"timing {name}: pair {done + 1} of processes", share + (1 - share) * part)

        offered = pairs(base, head, asdict(spec), timed_on)
        left_s = (ends - monotonic()) / (len(question.workloads) - index)
        row, timing = _timed_row(question, name, offered, (before, after), exact, left_s, tell)
        judged.rows.append(row)
        judged.timings += [timing] if timing else []
    return judged


def _exact_rows(name: str, base: Stock, head: Stock, limits: Limits, folders: tuple[Path, Path]) -> list[Row]:
    """The rows of counts and of compiled kernels; ``folders``: base's and head's."""
    return [*model_rows(name, base, head, limits), *kernel_rows(name, base, head, limits, folders)]


def _timed_row(
    question: Question,
    name: str,
    offered: Generator[Pair],
    stocks: tuple[Stock, Stock],
    beside: Sequence[Row],
    budget_s: float,
    tell: Callable[[int], None],
) -> tuple[Row, dict[str, Any] | None]:
    """The row of a step's time, and its timing if there is one: as many of the pairs ``offered`` as decide it.

    ``stocks``: base's and head's; ``beside``: the exact rows, which may say why a step is slower.
    """
    margin, risk = question.limits["step_time"], ALPHA / len(question.workloads)
    try:
        had = until_decided(offered, margin, risk, budget_s, tell)
    except SideBroke as broke:
        return Row("ERROR", name, "time", "step_time", None, None, str(broke)), None
    return time_row(name, had, margin, risk, same_code=is_same_code(*stocks), beside=beside)


def _warning_of_others() -> list[str]:
    """That others are on the GPU before anything of ours is timed there."""
    device = torch.device("cuda")
    wait_for(device)  # for the driver to list this process, too: where it does not, nobody can tell others apart
    others = other_processes(device_uuid(device))
    return [f"{others} other processes are on the GPU: intervals are wider than they need to be"] if others else []


def _workload_as_counted(spec: WorkloadSpec, head: Mapping[str, Any]) -> dict[str, Any]:
    """What was counted, and how many kernels of it were compiled for each target."""
    kernels = {target: len(found) for target, found in head["kernels"].items()}
    return {**head["workload"], "kernels": kernels, "kernels_dtype": (spec.dtype or "bf16") if kernels else None}


def _kernels_not_launched(name: str, head: Mapping[str, Any]) -> Iterator[str]:
    """That kernels are there, and none was launched: what is compiled for nobody passes nothing."""
    silent = [target for target, found in head["kernels"].items() if not found]
    if silent and head["has_kernels"]:
        yield (
            f"{name}: its code has Triton kernels, but its step launches none for {', '.join(silent)}, so none was "
            "compiled; a step that asks whether its tensors are on a GPU first launches none without one"
        )


def _changed_files(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """In which files both sides' code differs."""
    old, new = before["code"], after["code"]
    changed = [file for file in dict.fromkeys([*new, *old]) if old.get(file) != new.get(file)]
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    told = f"differs in {', '.join(changed[:NAMED])}{more}" if changed else "is the same on both sides"
    yield f"{name}: the Python code that its step imports {told}"
