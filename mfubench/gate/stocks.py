"""Both sides' stocks of every workload, which are of both sides' own code, or refused."""

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path

from mfubench.errors import BadInput, ToolBroke
from mfubench.progress import Progress
from mfubench.side_by_side import SharedProgress, share_out
from mfubench.worker import DONE, Worker
from mfubench.workload.spec import WorkloadSpec

from .compare import Stock
from .side import take_stock
from .source import Source

STOCK_LIMIT_S = 1800.0
COMPILE_LIMIT_S = 900.0  # a step's kernels for one target
Stocks = Mapping[tuple[str, str], Stock]
"""By workload and side."""


def both_stocks(
    workloads: Mapping[str, WorkloadSpec],
    targets: Sequence[str],
    sides: Mapping[str, Source],
    timed_on: str | None,
    progress: Progress,
) -> Stocks:
    """What each side says of each workload; both sides at once, each workload in a process of its own.

    ``timed_on``: the device that steps are timed on afterwards, and so counted on, if any.

    Raises:
        BadInput: a workload that neither side can have, or whose code is not the working directory's.
        ToolBroke: taking stock of a side broke.
    """
    found: dict[tuple[str, str], Stock] = {}
    told = SharedProgress(progress, len(sides) * len(workloads))
    # A CPU's worker would interpret the kernels that it is to compile.
    hands = {name: Worker(timed_on if timed_on == "cuda" else "meta", place=side.place) for name, side in sides.items()}

    def take(_free: Worker, side: str) -> None:
        for name, spec in workloads.items():
            told.begins(f"{name}: counting and compiling {side}")
            with closing(hands[side]) as worker:
                paths = [str(path) for path in sides[side].paths]
                arguments = {"workload": asdict(spec), "paths": paths, "targets": list(targets)}
                answer = worker.run(take_stock, arguments, limit_s=STOCK_LIMIT_S, part_limit_s=COMPILE_LIMIT_S)
            if answer.status != DONE:
                raise ToolBroke(f"{name}: taking stock of {side} broke: {answer.reason}")
            found[name, side] = answer.document

    share_out(list(sides), list(hands.values()), take)
    for name in workloads:
        _require_ours(name, found[name, "base"], found[name, "head"], sides)
    return {place: _missing_if_new(stock, found[place[0], "head"], sides) for place, stock in found.items()}


def _require_ours(name: str, base: Stock, head: Stock, sides: Mapping[str, Source]) -> None:
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


def _is_new(base: Stock, head: Stock, sides: Mapping[str, Source]) -> bool:
    """Whether base found some other copy of what only head has."""
    if "outside" not in base or "file" not in head:
        return False
    with suppress(ValueError):
        return not (sides["base"].folder / Path(head["file"]).relative_to(sides["head"].folder)).exists()
    return False


def _missing_if_new(stock: Stock, head: Stock, sides: Mapping[str, Source]) -> Stock:
    if not _is_new(stock, head, sides):
        return stock
    return {"missing": True, "refused": f"it has no {Path(head['file']).name}"}
