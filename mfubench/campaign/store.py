"""A campaign's folder: one JSON file a task, written whole, and what says whose they are.

A folder belongs to one device, toolchain and state of the code, so that a later call resumes it and never mixes two.
What hangs on the kernels' sources alone may be taken over from the folder of other code, and says so.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfubench.errors import BadInput
from mfubench.files import kept_json, read_json, write_json
from mfubench.identity import code_hash, kernels_hash, require_same
from mfubench.worker import DONE, FAILED, PART

from .contracts import contracts
from .plan import Task

SCHEMA_VERSION = 1
INDEX = "campaign.json"
_PARTS = {  # of a stage's documents, which a page reads
    "calibration": ("environment", "by_dtype"),
    "contract": ("ops", "environment"),
    "tune": ("entries",),
    "bench": ("rows", "nvml"),
    "profile": ("workload", "step", "mfu_of_measured_peak", "flops", "warnings"),
    "road": ("steps", "changes", "identity"),
    "scale": ("data", "environment", "settings", "predictors", "points", "fits", "baseline"),
}
CACHE = "triton"  # Triton's, where kernels were compiled ahead


class Store:
    """The folder of one campaign."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, environment: Mapping[str, Any], tasks: Sequence[Task] = ()) -> None:
        """Make the folder, or go on with one of the same device, toolchain and code; ``tasks`` are what it is to have.

        Raises:
            BadInput: it holds another campaign, or a result of one.
        """
        identity = {**_proved_on(environment), "code": code_hash()}
        index: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "identity": identity, "environment": environment}
        if (self.folder / INDEX).exists():
            index = self.index()
            index["identity"].setdefault("kernels", identity["kernels"])  # which an older one tells by its code alone
            require_same(self.folder / INDEX, "campaign", index["identity"], identity)
            contracts(self.results("contract"))
        index["planned"] = list(dict.fromkeys([*index.get("planned", ()), *(task.id for task in tasks)]))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / INDEX, index)

    def index(self) -> dict[str, Any]:
        """Identity, environment, and the ids of the tasks that were planned.

        Raises:
            BadInput: no campaign is here, or one of another schema.
        """
        file = self.folder / INDEX
        found: dict[str, Any] = read_json(file, "give a folder of `mfubench campaign`")
        known = isinstance(found, dict) and found.get("schema_version") == SCHEMA_VERSION
        if not known or not all(isinstance(found.get(part), dict) for part in ("identity", "environment")):
            raise BadInput(f"{file} is no campaign of schema_version {SCHEMA_VERSION}; run `mfubench campaign` anew")
        return found

    def require_lender(self, source: "Store", environment: Mapping[str, Any]) -> None:
        """Refuse to `take_over` from ``source`` where its verdicts on kernels do not hold in ``environment``.

        Raises:
            BadInput: it is this campaign or none, is of another device, toolchain or kernels, or does not tell which.
        """
        file = source.folder / INDEX
        if source.folder.resolve() == self.folder.resolve():
            raise BadInput(f"--from {source.folder} is --out itself, which goes on by itself; give another campaign's")
        there, here = source.index()["identity"], _proved_on(environment)
        if "kernels" not in there:
            raise BadInput(
                f"{file} does not tell its kernels' sources, as an older mfubench wrote it; leave --from out: their "
                "contract is then run anew"
            )
        shared = {name: there.get(name) for name in here}
        instead = "give --from a campaign of the same, or leave it out: the contract is then run anew"
        require_same(file, "campaign", shared, here, instead=instead)

    def take_over(self, source: "Store", tasks: Sequence[Task]) -> Counter[str]:
        """Take what ``source`` has done of ``tasks`` and this campaign has not; each result says whose it is.

        Returns:
            How many by stage.
        """
        index = source.index()
        of = {"code": index["identity"].get("code"), **{n: index["environment"].get(n) for n in ("git_sha", "date")}}
        taken: Counter[str] = Counter()
        for task in tasks:
            found = source._of(task)
            if found is None or found["status"] != DONE or not _is_of(task.stage, found) or self.is_done(task):
                continue
            self._keep(task, {**found, "of": found.get("of", of)})  # which may have taken it over itself
            taken[task.stage] += 1
        return taken

    def place(self, task: Task) -> Path:
        """Where the task's result lies."""
        return self.folder / task.stage / f"{task.name}.json"

    def is_done(self, task: Task) -> bool:
        """Whether this very task has a result that stands; one that failed or was cut off is tried again."""
        found = self._of(task)
        return found is not None and found["status"] == DONE

    def _of(self, task: Task) -> dict[str, Any] | None:
        """The result of a task with these arguments; with others it would be another result."""
        found = self.read(task.stage, task.name)
        return (
            found if found is not None and found["arguments"] == json.loads(json.dumps(dict(task.arguments))) else None
        )

    def write(self, task: Task, status: str, reason: str | None, document: Any) -> None:
        """Keep a task's result; a failure takes nothing away from what an earlier try has in part."""
        before = self._of(task)
        if status == FAILED and before is not None and before["status"] == PART:
            status, document = PART, before["document"]
        result = {"task": task.id, "arguments": dict(task.arguments), "status": status, "reason": reason}
        self._keep(task, {**result, "document": document})

    def _keep(self, task: Task, result: Mapping[str, Any]) -> None:
        place = self.place(task)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, result)

    def read(self, stage: str, name: str) -> dict[str, Any] | None:
        """The result of a task, None where there is none or it is unreadable."""
        found = kept_json(self.folder / stage / f"{name}.json")
        return found if found is not None and _is_result(found) else None

    def documents(self, stage: str) -> list[Any]:
        """The documents of a stage's tasks that are done, in part, too."""
        return [found["document"] for found in self.results(stage) if found["status"] in (DONE, PART)]

    def results(self, stage: str) -> list[dict[str, Any]]:
        """Every result of a stage, by name."""
        files = sorted((self.folder / stage).glob("*.json"))
        return [found for file in files if (found := self.read(stage, file.stem)) is not None]

    def shown(self, stage: str) -> list[dict[str, Any]]:
        """Those that a page can show: without a file whose document is none that the stage writes."""
        return [result for result in self.results(stage) if _is_of(stage, result)]


def _proved_on(environment: Mapping[str, Any]) -> dict[str, Any]:
    """All that a verdict on kernels hangs on."""
    toolchain = {name: environment.get(name) for name in ("torch", "triton")}
    return {"device": environment["device_name"], **toolchain, "kernels": kernels_hash()}


def _is_result(found: Mapping[str, Any]) -> bool:
    """Whether a file holds a task's result: with a document, if there is something in it."""
    named = all(name in found for name in ("task", "arguments", "status", "reason"))
    if not named or not isinstance(found["arguments"], dict):
        return False
    return found["status"] not in (DONE, PART) or "document" in found


def _is_of(stage: str, result: Mapping[str, Any]) -> bool:
    """Whether a result's document, if it has one, has what a page reads of its stage's."""
    wanted = _PARTS.get(stage, ()) if result["status"] in (DONE, PART) else ()
    return not wanted or (isinstance(result["document"], dict) and all(part in result["document"] for part in wanted))
