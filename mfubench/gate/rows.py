"""What a gate says: one row for each thing that it looked at, and the verdict that all of them come to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .where import Difference, in_words

Verdict = Literal["FAIL", "ERROR", "INCONCLUSIVE", "ENVIRONMENT", "NO_BASELINE", "CHANGED", "IMPROVED", "PASS"]
VERDICTS: dict[Verdict, str] = {  # the worst first
    "FAIL": "worse than its limit allows",
    "ERROR": "could not be looked at",
    "INCONCLUSIVE": "the budget ended before its interval left the limit",
    "ENVIRONMENT": "slower, but base and head are the same code",
    "NO_BASELINE": "base has no such model",
    "CHANGED": "another value, of which neither is known to be worse",
    "IMPROVED": "better than base",
    "PASS": "within its limit",
}
Tier = Literal["model", "kernels", "time"]
FAILED, INCONCLUSIVE, NO_BASELINE, BROKE = 1, 3, 4, 5  # exit codes; 2 is the command line's own


@dataclass(frozen=True, slots=True)
class Row:
    """One thing of one benchmark in base and in head.

    ``subject``: the kernel that it is about; empty for the whole model. ``ratio`` is head over base, with its 95 %
    interval where it was measured; ``margin`` by which share head may be above base, or by how many of them
    (`policy.ABSOLUTE`). ``file`` and ``line``: where to look.
    ``waived``: the reason why a FAIL does not count, until a date. ``where``: the places in the model that make the
    most of a count's difference, beside which there are so many ``elsewhere``.
    """

    verdict: Verdict
    benchmark: str
    tier: Tier
    metric: str
    base: float | str | None
    head: float | str | None
    why: str
    subject: str = ""
    unit: str = ""
    ratio: tuple[float, float, float] | None = None
    margin: float | None = None
    file: str | None = None
    line: int | None = None
    waived: str | None = None
    where: tuple[Difference, ...] = ()
    elsewhere: int = 0

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> "Row":
        """A row as a document has it; one from before a field was there lacks it."""
        return cls(**{**told, "where": tuple(Difference(**each) for each in told.get("where", ()))})

    @property
    def located(self) -> str:
        """What in the model makes the difference, in words; empty where that is not known."""
        if not self.where or isinstance(self.base, str | None) or isinstance(self.head, str | None):
            return ""
        rest = self.head - self.base - sum(each.more for each in self.where)
        return in_words(self.where, self.elsewhere, rest, self.unit)

    @property
    def explanation(self) -> str:
        """Why it has its verdict, and what in the model makes the difference."""
        return "; ".join(part for part in (self.why, self.located) if part)

    @property
    def counts(self) -> Verdict:
        """The verdict that this row brings to the whole: a waived FAIL is a change that is known."""
        return "CHANGED" if self.waived is not None and self.verdict == "FAIL" else self.verdict

    @property
    def name(self) -> str:
        """What a waiver names: ``benchmark metric``, or ``benchmark subject metric``."""
        return " ".join(part for part in (self.benchmark, self.subject, self.metric) if part)


@dataclass(frozen=True, slots=True)
class Outcome:
    """All rows, the worst first, and what the gate says of them."""

    rows: list[Row]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Outcome":
        """Rows in the order in which a reader wants them: by verdict, time before what may explain it."""
        order = list(VERDICTS)
        return cls(sorted(rows, key=lambda row: (order.index(row.counts), row.tier != "time")))

    @property
    def counted(self) -> dict[Verdict, int]:
        """How many rows have each verdict, the worst first; those that none has are left out."""
        found = Counter(row.counts for row in self.rows)
        return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

    @property
    def verdict(self) -> Verdict:
        """The worst of the rows'."""
        return next(iter(self.counted), "PASS")

    def exit_code(self, *, strict: bool = False, require_baseline: bool = False) -> int:
        """What the process ends with: 0 unless a row fails, or one is undecided where that may not be."""
        counted = self.counted
        if counted.get("FAIL"):
            return FAILED
        if counted.get("ERROR"):
            return BROKE
        if require_baseline and counted.get("NO_BASELINE"):
            return NO_BASELINE
        if strict and (counted.get("INCONCLUSIVE") or counted.get("ENVIRONMENT")):
            return INCONCLUSIVE
        return 0

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows as JSON."""
        return [asdict(row) for row in self.rows]
