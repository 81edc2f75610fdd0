"""How far a machine's own gate can be trusted: how often it would blame what is the same, and miss what is slower."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from time import monotonic
from typing import Any

import numpy as np

from mfubench.errors import BadInput, ToolBroke
from mfubench.measure.effect import ALPHA
from mfubench.measure.stats import student_quantile
from mfubench.progress import Progress

from .decide import LOOKS, PairEstimate, decided
from .rows import Verdict
from .source import Source
from .timing import BLOCKS, SideBroke, SideRefused, pairs

ONE_MORE_IN = 10  # steps of a turn
INJECTED = 1 / ONE_MORE_IN
TRIALS, SEED = 2000, 0
ENOUGH = 12  # pairs of either kind; more would tell little more
FEWEST = LOOKS[0]
CAUGHT = 0.9
SPARE = 1.1
RISK = 1e-4  # of taking chance for a lasting difference, which would then make every replayed gate err
MOST = 1.0  # twice the time
METHOD = (
    f"Pairs of processes, {BLOCKS} blocks each, of the same code; and pairs whose second side does one step more for "
    f"every {ONE_MORE_IN} of a turn. {TRIALS} gates of each kind are replayed on samples of a normal law. Its mean is "
    f"the true one, unless the pairs show another ({1 - RISK:.2%} sure); its spread is that of all pairs around their "
    "kind's mean. From few pairs that spread, and every rate with it, is a rough estimate."
)


def self_check(
    side: Source, workload: Mapping[str, Any], device: str, *, margin: float, budget_s: float, progress: Progress
) -> dict[str, Any]:
    """Rates of this machine's gate for one workload, as JSON.

    Raises:
        BadInput: there is no such model, it does not run, or the budget ends before there are enough pairs.
        ToolBroke: timing it broke.
    """
    began = monotonic()
    ends = [began]
    equal, slower = pairs(side, side, workload, device), pairs(side, side, workload, device, one_more_in=ONE_MORE_IN)
    logs: dict[str, list[float]] = {"equal": [], "slower": []}
    try:
        while (done := len(logs["slower"])) < ENOUGH:
            spent = monotonic() - began
            if done >= FEWEST and spent + spent / done > budget_s:
                break
            progress(f"timing round {done + 1} of {ENOUGH}: a pair that is equal, one that is slower", done / ENOUGH)
            for kind, offered in (("equal", equal), ("slower", slower)):
                logs[kind].append(next(offered).log)
                ends.append(monotonic())
                _require_time(np.diff(ends).tolist(), budget_s)
    except SideRefused as refused:
        raise BadInput(str(refused).partition(": ")[2]) from refused
    except SideBroke as broke:
        raise ToolBroke(str(broke)) from broke
    finally:
        equal.close()
        slower.close()
    return {
        "schema_version": 1,
        "pairs": done,
        "injected": INJECTED,
        **rates(logs, margin),
        "method": METHOD,
    }


def _require_time(pairs_s: Sequence[float], budget_s: float) -> None:
    """Refuse a budget as soon as the pairs so far, of so many seconds, show that the last one needed begins after it.

    The first pair fills caches and compiles, which no other does.

    Raises:
        BadInput: saying about how long is needed.
    """
    first, *others = pairs_s
    left = 2 * FEWEST - len(pairs_s)
    if left <= 0:
        return
    if sum(pairs_s) + (left - 1) * min(others, default=0.0) > budget_s:
        each = min(others, default=first)
        longer = math.ceil(SPARE * (first + (2 * FEWEST - 1) * each) / 10) * 10
        raise BadInput(
            f"--budget of {budget_s:g} s is too short: a round takes about {2 * each:.0f} s here, and {FEWEST} are "
            f"needed; give about {longer} s or more"
        )


def rates(logs: Mapping[str, Sequence[float]], margin: float) -> dict[str, Any]:
    """What gates with this margin would say, of ``equal`` pairs' log ratios and of ``slower`` ones'."""
    # Drawn from the few pairs themselves, a gate often gets one of them several times, and far too narrow an interval.
    freedom = sum(map(len, logs.values())) - len(logs)
    spread = math.sqrt(sum((log - fmean(kind)) ** 2 for kind in logs.values() for log in kind) / freedom)
    sure = student_quantile(1 - RISK / 2, freedom) * spread
    equal, slower = _mean(logs["equal"], 0.0, sure), _mean(logs["slower"], math.log1p(INJECTED), sure)
    same, worse = replay(equal, spread, margin), replay(slower, spread, margin)
    return {
        "margin": margin,
        "noise": list(PairEstimate.of(logs["equal"], ALPHA).as_tuple),
        "found": list(PairEstimate.of(logs["slower"], ALPHA).as_tuple),
        "trials": TRIALS,
        "false_alarms": same["FAIL"],
        "undecided_equal": same["INCONCLUSIVE"],
        "pairs_used_equal": same["pairs"],
        "detected": worse["FAIL"],
        "missed": worse["PASS"] + worse["IMPROVED"],
        "undecided_slower": worse["INCONCLUSIVE"],
        "pairs_used_slower": worse["pairs"],
        "smallest_change": _smallest_change(equal, spread, margin),
    }


def _mean(logs: Sequence[float], truth: float, sure: float) -> float:
    """What is true, unless the samples show that it is not: a dozen have another mean by chance.

    ``sure``: how far a single one would have to be off.
    """
    middle = fmean(logs)
    return truth if abs(middle - truth) <= sure / math.sqrt(len(logs)) else middle


def replay(mean: float, spread: float, margin: float) -> dict[str, float]:
    """Shares of verdicts of gates whose pairs' log ratios are normal, and how many ``pairs`` they use on average."""
    draw = np.random.default_rng(SEED)
    verdicts: dict[Verdict, int] = dict.fromkeys(("FAIL", "PASS", "IMPROVED", "INCONCLUSIVE"), 0)
    used = 0
    for _ in range(TRIALS):
        drawn = draw.normal(mean, spread, LOOKS[-1]).tolist()
        found = next(found for n in LOOKS if (found := decided(drawn[:n], margin)) is not None)
        verdicts[found.verdict(margin)] += 1
        used += found.pairs
    return {**{verdict: count / TRIALS for verdict, count in verdicts.items()}, "pairs": used / TRIALS}


def _smallest_change(equal: float, spread: float, margin: float) -> float | None:
    """The least slowdown that nine gates of ten catch, were it to come upon equal code; None above MOST."""

    def caught(change: float) -> bool:
        return replay(equal + math.log1p(change), spread, margin)["FAIL"] >= CAUGHT

    low, high = margin, margin + MOST
    if not caught(high):
        return None
    for _ in range(10):  # by bisection
        middle = (low + high) / 2
        low, high = (low, middle) if caught(middle) else (middle, high)
    return high
