"""How far a machine's own gate can be trusted: how often it would blame what is the same, and miss what is slower."""

import math
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import numpy as np

from mfubench.errors import ToolBroke
from mfubench.measure.stats import student_interval
from mfubench.progress import Progress

from .decide import ALPHA, LOOKS, Estimate, decided
from .rows import Verdict
from .source import Source
from .timing import BLOCKS, SideBroke, pairs

ONE_MORE_IN = 10  # steps of a turn
INJECTED = 1 / ONE_MORE_IN
TRIALS, SEED = 2000, 0
ENOUGH = 12  # pairs of either kind; more would tell little more
FEWEST = LOOKS[0]
CAUGHT = 0.9
MOST = 1.0  # twice the time
METHOD = (
    f"Pairs of processes, {BLOCKS} blocks each, of the same code; and pairs whose second side does one step "
    f"more for every {ONE_MORE_IN} of a turn. {TRIALS} gates are replayed on samples drawn from them."
)


def self_check(
    side: Source, workload: Mapping[str, Any], device: str, *, margin: float, budget_s: float, progress: Progress
) -> dict[str, Any]:
    """Rates of this machine's gate for one workload, as JSON.

    Raises:
        ToolBroke: the model cannot be timed, or the budget ends before there are enough pairs.
    """
    began = monotonic()
    equal, slower = pairs(side, side, workload, device), pairs(side, side, workload, device, one_more_in=ONE_MORE_IN)
    logs: dict[str, list[float]] = {"equal": [], "slower": []}
    try:
        while len(logs["slower"]) < ENOUGH:
            spent = monotonic() - began
            done = len(logs["slower"])
            if done and spent + spent / done > budget_s:
                break
            progress(f"timing round {done + 1} of {ENOUGH}: a pair that is equal, one that is slower", done / ENOUGH)
            logs["equal"].append(next(equal).log)
            if monotonic() - began > budget_s:
                break
            logs["slower"].append(next(slower).log)
    except SideBroke as broke:
        raise ToolBroke(str(broke)) from broke
    finally:
        equal.close()
        slower.close()
    done = len(logs["slower"])
    if done < FEWEST:
        raise ToolBroke(f"{done} rounds in {budget_s:.0f} s; {FEWEST} are needed: give a longer --budget")
    return {
        "schema_version": 1,
        "pairs": done,
        "injected": INJECTED,
        **rates(logs, margin),
        "method": METHOD,
    }


def rates(logs: Mapping[str, Sequence[float]], margin: float) -> dict[str, Any]:
    """What gates with this margin would say, of ``equal`` pairs' log ratios and of ``slower`` ones'."""
    equal, slower = _around(logs["equal"], 0.0), _around(logs["slower"], math.log1p(INJECTED))
    same, worse = replay(equal, margin), replay(slower, margin)
    return {
        "margin": margin,
        "noise": list(Estimate.of(logs["equal"], ALPHA).as_tuple),
        "found": list(Estimate.of(logs["slower"], ALPHA).as_tuple),
        "trials": TRIALS,
        "false_alarms": same["FAIL"],
        "undecided_equal": same["INCONCLUSIVE"],
        "pairs_used_equal": same["pairs"],
        "detected": worse["FAIL"],
        "missed": worse["PASS"] + worse["IMPROVED"],
        "undecided_slower": worse["INCONCLUSIVE"],
        "pairs_used_slower": worse["pairs"],
        "smallest_change": _smallest_change(equal, margin),
    }


def _around(logs: Sequence[float], truth: float) -> list[float]:
    """The samples with their mean at what is true, unless they show that it is not: a dozen have one by chance."""
    middle, low, high = student_interval(logs, ALPHA)
    return [log + (truth - middle if low <= truth <= high else 0.0) for log in logs]


def replay(logs: Sequence[float], margin: float) -> dict[str, float]:
    """Shares of verdicts of gates whose pairs are drawn from ``logs``, and how many ``pairs`` they use on average."""
    draw = np.random.default_rng(SEED)
    verdicts: dict[Verdict, int] = dict.fromkeys(("FAIL", "PASS", "IMPROVED", "INCONCLUSIVE"), 0)
    used = 0
    for _ in range(TRIALS):
        drawn = draw.choice(np.asarray(logs), LOOKS[-1]).tolist()
        found = next(found for n in LOOKS if (found := decided(drawn[:n], margin)) is not None)
        verdicts[found.verdict(margin)] += 1
        used += found.pairs
    return {**{verdict: count / TRIALS for verdict, count in verdicts.items()}, "pairs": used / TRIALS}


def _smallest_change(equal: Sequence[float], margin: float) -> float | None:
    """The least slowdown that nine gates of ten catch, were it to come upon these pairs; None above MOST."""

    def caught(change: float) -> bool:
        return replay([log + math.log1p(change) for log in equal], margin)["FAIL"] >= CAUGHT

    low, high = margin, margin + MOST
    if not caught(high):
        return None
    for _ in range(10):  # by bisection
        middle = (low + high) / 2
        low, high = (low, middle) if caught(middle) else (middle, high)
    return high
