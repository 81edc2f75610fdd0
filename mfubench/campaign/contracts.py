"""How much of each op's numeric contract is held: it is split into tasks, and stands only with all of their results."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mfubench.errors import BadInput

Result = Mapping[str, Any]
SAID = ("op", "parts")  # in the arguments of every task of a contract


@dataclass(frozen=True, slots=True)
class Contract:
    """The results that there are of an op's contract in ``parts`` parts; ``step``: of that step's calls of the op."""

    op: str
    step: str
    parts: int
    results: list[Result] = field(default_factory=list)

    def has_all(self, that: Callable[[Result], bool] = lambda result: True) -> bool:
        """Whether every part has a result of which ``that`` is so."""
        return sum(map(that, self.results)) == self.parts


def contracts(results: Iterable[Result]) -> list[Contract]:
    """The contracts whose parts' ``results`` these are, in the order of their first ones.

    Raises:
        BadInput: a result does not say of which contract it is.
    """
    found: dict[tuple[str, str], Contract] = {}
    for result in results:
        given = result["arguments"]
        missing = [name for name in SAID if name not in given]
        if missing:
            raise BadInput(
                f"{result['task']}.json in the campaign's folder does not say its {' and '.join(missing)}: it is "
                "damaged, or of another release; take it away, and `mfubench campaign` runs its task anew"
            )
        op, step = given["op"], given.get("step", "")
        found.setdefault((op, step), Contract(op, step, given["parts"])).results.append(result)
    return list(found.values())
