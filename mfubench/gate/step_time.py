"""What the pairs of processes of both sides come to: the row of the step's time, and its samples."""

from collections.abc import Sequence
from dataclasses import asdict
from math import exp
from typing import Any

from mfubench.measure.effect import ALPHA
from mfubench.measure.stats import median_ci

from .decide import LOOKS, PairEstimate, decided
from .rows import Row
from .timing import BLOCKS, Pair

TOLD = ("FAIL", "CHANGED")
NAMED = 5  # causes, in a sentence
SAME_CODE = "base and head import the same code, need the same and compile to the same: the machine did it, or data"


def time_row(
    name: str, had: Sequence[Pair], margin: float, risk: float, *, same_code: bool, beside: Sequence[Row]
) -> tuple[Row, dict[str, Any] | None]:
    """The row of what is called ``name``, and its timing as the document has it, None of a single pair.

    ``risk`` is the probability with which the interval may be wrong; ``beside`` are the other rows, which may say why
    it is slower. What is slower without any difference in code (`compare.is_same_code`) is no regression of it.
    """
    logs = [pair.log for pair in had]
    if len(logs) == 1:
        why = f"the budget ended after one pair of processes; a verdict takes {LOOKS[0]} or more"
        return Row("INCONCLUSIVE", name, "time", "step_time", None, None, why, unit="ms", margin=margin), None
    found, out_of_time = decided(logs, margin, risk), ""
    if found is None:
        found = PairEstimate.of(logs, risk / len(LOOKS))  # a look that is left to it
        out_of_time = f"; the budget ended after {len(had)} of {LOOKS[-1]} pairs"
    verdict = found.verdict(margin)
    why = f"{found.ratio - 1:+.1%} [{found.low - 1:+.1%}, {found.high - 1:+.1%}], allowed {margin:.1%}{out_of_time}"
    told = why
    if verdict == "FAIL":
        told += _causes(beside)
        if same_code:
            verdict, told = "ENVIRONMENT", f"{SAME_CODE}; {told}"
    steps = {side: median_ci([ms for pair in had for ms in getattr(pair, f"{side}_ms")]) for side in ("base", "head")}
    old, new = (median for median, _, _ in steps.values())
    row = Row(verdict, name, "time", "step_time", old, new, told, unit="ms", ratio=found.as_tuple, margin=margin)
    return row, {
        "benchmark": name,
        "unit": "ms",
        "pairs": len(had),
        "blocks_a_pair": BLOCKS,
        **{f"{side}_ms": list(step) for side, step in steps.items()},
        "ratio": list(found.as_tuple),
        "margin": margin,
        "against_itself": list(PairEstimate.of([pair.itself for pair in had], ALPHA).as_tuple),
        "ratios_of_pairs": [exp(log) for log in logs],
        "samples": [asdict(pair) for pair in had],
        "why": why,
    }


def _causes(beside: Sequence[Row]) -> str:
    """What else is not as it was."""
    told = [f"{row.subject or row.metric}: {row.explanation}" for row in beside if row.verdict in TOLD]
    return f"; beside it, {'; '.join(told[:NAMED])}" if told else ""
