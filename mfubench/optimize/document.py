"""A search as a document: what was tried, what it won, what was not tried and why; ready for JSON and reports."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mfubench.measure.effect import ALPHA, LEAST

from .gain import LOOKS
from .numbers import FACTOR, ROUNDED, STEPS, TRAININGS

SCHEMA_VERSION = 1
METHOD = (
    "A change is predicted from the profile's ledger and tried on top of what is kept so far, in a process of its own, "
    "the best prediction first. A prediction is what the ledger says could be won; where the host's time is most "
    "of a step, which a trace shows but in part, more may be. Numbers: outputs and every "
    f"gradient against the unchanged model in fp64, within {FACTOR:g} times the error that the unchanged model makes, "
    f"the worst of {ROUNDED + 1} runs of which {ROUNDED} have results moved by rounding errors; losses of {STEPS} "
    f"steps within {FACTOR:g} times what {TRAININGS} of its trainings from moved parameters stray, or what a loss is "
    "rounded by. Time: blocks ABBA of the old and the new step, the median of their log ratios for each sample with "
    f"its bootstrap interval, looked at after {', '.join(map(str, LOOKS))} blocks; the {100 * ALPHA:g} % of searches "
    "that may keep what wins nothing are split over candidates and looks. Kept is what is all above "
    f"{100 * math.expm1(LEAST):.3g} % faster there and, measured anew, in a fresh process; its steps, "
    "the milliseconds won and the 95 % interval are of that second measurement. The interval that decides is wider."
)


@dataclass(slots=True)
class Step:
    """One change that was tried, timed beside what was kept before it; None where nothing was measured.

    ``old_ms`` is a step before it and ``new_ms`` one with it, for as many samples; ``measured_ms`` is what lies between
    them and ``speedup`` what they make, both with the same 95 % interval.
    """

    change: str
    plain: dict[str, Any]
    cause: str
    predicted_ms: float
    measured_ms: float | None
    ci95: list[float] | None
    speedup: dict[str, float] | None
    kept: bool
    reason: str
    alters: str
    numbers: list[str] = field(default_factory=list)
    seconds: float = 0.0
    old_ms: float | None = None
    new_ms: float | None = None


@dataclass(slots=True)
class NotTried:
    """A remedy that was not tried, and why."""

    change: str
    cause: str
    predicted_ms: float
    reason: str


@dataclass(slots=True)
class Optimization:
    """The whole search. ``speedup`` is the end against the start, ``plain_compile`` what torch.compile alone reaches.

    Both are times as fast for each sample, median and 95 % interval, measured in turn in one process; None where they
    were not measured, as where nothing was kept. ``in_turn`` has the steps of ``start``, ``end`` and ``plain`` there.
    ``judge`` says by what changes were kept: their time, or their numbers only.
    """

    workload: dict[str, Any]
    environment: dict[str, Any]
    judge: str
    budget_s: float
    seconds: float
    stopped: str
    speedup: dict[str, float] | None
    plain_compile: dict[str, Any]
    over_plain_compile: dict[str, float] | None
    in_turn: dict[str, dict[str, Any]]
    steps: list[Step]
    not_tried: list[NotTried]
    kept: list[str]
    alters: list[str]
    start: dict[str, Any]
    end: dict[str, Any] | None
    notes: list[str]
    resumed: bool = False
    method: str = METHOD
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The document as JSON, ``schema_version`` first."""
        document = asdict(self)
        return json.dumps({"schema_version": document.pop("schema_version"), **document}, indent=1)


def step_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimization keeps of a Run's document: its step and its utilisation."""
    keys = ("step", "mfu", "mfu_of_measured_peak", "hfu_of_measured_peak", "flops", "impls", "warnings")
    return {key: run[key] for key in keys}
