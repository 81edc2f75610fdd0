"""The ablation as a document: every step and change with its pedigree, ready for JSON and for the reports."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mfubench.comparison import Estimate, Row

from .judge import Judgement, Sign, signs
from .plan import Kind

SCHEMA_VERSION = 1
Status = Literal["done", "out_of_memory", "not_reached"]
METHOD = (
    "Each setting is profiled alone; that is where its throughput, utilisation, memory and energy come from, with "
    "the bootstrap interval of its mean step. A change is measured apart from that: both settings are held at once "
    "and timed in turn, one step of each a round in an order drawn anew, on the same batches; it is the median of the "
    "rounds' ratios with its 95 % bootstrap interval, so that a machine that drifts does not look like an effect. All "
    "runs in one process: what differs from process to process is in no interval."
)


@dataclass(frozen=True, slots=True)
class Step:
    """One setting of the switches. ``run`` is its run.json's place in the folder, ``reason`` why it has no ``row``."""

    name: str
    kind: Kind
    switches: Mapping[str, Any]
    status: Status
    reason: str
    run: str | None
    row: Row | None


@dataclass(frozen=True, slots=True)
class Change:
    """What turning the switch ``name`` on does: ``after`` held against ``before``.

    ``time_ratio`` is after over before. ``relative`` has the relative change of each metric, 0.1 for 10 % more;
    counted ones are exact. ``in_turn`` says that both were timed in turn; where it is not so, or there is no number,
    ``reason`` says why. ``same_data`` is false where the two read histories of other lengths.
    """

    name: str
    kind: Kind
    before: str
    after: str
    status: Status
    reason: str
    in_turn: bool
    same_data: bool
    time_ratio: Estimate | None
    relative: Mapping[str, Estimate]
    timings_ms: Mapping[str, list[float]]


@dataclass(frozen=True, slots=True)
class Ablation:
    """Everything that an ablation found so far."""

    identity: Mapping[str, Any]
    environment: Mapping[str, Any]
    workload: Mapping[str, Any]
    peak: Mapping[str, Any]
    steps: list[Step]
    changes: list[Change]
    published: list[Judgement]
    contradictions: list[str]
    rule: str
    not_measured: list[str]
    warnings: list[str]
    method: str = METHOD
    schema_version: int = SCHEMA_VERSION

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return "not_reached" not in [*(step.status for step in self.steps), *(change.status for change in self.changes)]

    def change(self, kind: Kind, name: str) -> Change | None:
        """The change of this kind and name, if the plan has one."""
        return next((each for each in self.changes if (each.kind, each.name) == (kind, name)), None)

    def signs(self, kind: Kind) -> Mapping[Sign, int]:
        """How many published signs agree, disagree and are undecided, among the changes of this kind."""
        return signs(each for each in self.published if each.kind == kind)

    def to_json(self) -> str:
        """The document as JSON, ``schema_version`` first."""
        document = asdict(self)
        first = {"schema_version": document.pop("schema_version"), "complete": self.complete}
        return json.dumps(first | document, indent=1)
