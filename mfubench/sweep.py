"""Profile a model at one batch size after the other: what more requests a step bring, and what an answer then takes."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from math import inf, log2
from pathlib import Path
from time import monotonic
from typing import Any

from .comparison import MEASURED_APART, Row
from .errors import BadInput, MfubenchError, OutOfMemory, TimeUp, ToolBroke
from .files import kept_json, write_json
from .identity import ELSEWHERE, digest, require_same
from .isolated import GaveUp, Tell, run_isolated
from .progress import Progress, silent
from .run import CAUSE_FAMILIES, Run, family_of, read_run, write_run
from .workload.spec import MAX_REQUESTS, WorkloadSpec

FILE = "sweep.json"
SCHEMA_VERSION = 1
FIRST = {"infer": 1, "train": 16}  # batch size, from which it doubles
MIN_RISE = 0.03  # of the throughput: what two doublings must bring at least for a third
KNEE = 0.9  # of the most throughput: the fewest requests that reach it
PERCENTILE = "99"
STEPS_OF_A_PERCENTILE = 100  # as many as one of them lies beyond
METHOD = (
    "Each batch size was profiled in a process of its own, the smallest first, one after the other. "
    f"{MEASURED_APART} A latency is that of one step after the other, each waited for: time in a queue is not in it."
)


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What is swept: ``spec`` without a batch size, at ``sizes`` or, without them, doubling from the mode's first.

    ``p99_ms`` is the latency that 99 % of an inference's steps should keep.

    Raises:
        BadInput: a latency that nothing can tell, or a recipe that cannot be read or sets the batch size itself.
    """

    spec: WorkloadSpec
    sizes: tuple[int, ...] = ()
    p99_ms: float | None = None
    recipe: Path | None = None

    def __post_init__(self) -> None:
        if self.recipe is not None:
            _require_free(self.recipe)
        if self.p99_ms is None:
            return
        if self.spec.mode == "train":
            raise BadInput("--p99-ms is of an inference's answers; give --mode infer, too")
        if not 0 < self.p99_ms < inf:
            raise BadInput(f"--p99-ms {self.p99_ms:g}; allowed: milliseconds above 0")
        if self.spec.steps < STEPS_OF_A_PERCENTILE:
            raise BadInput(
                f"--p99-ms: {self.spec.steps} steps do not tell what 99 % keep; "
                f"give --steps {STEPS_OF_A_PERCENTILE} or more"
            )


def _require_free(recipe: Path) -> None:
    """Refuse a recipe that sets the batch size."""
    from .optimize.recipe import read_recipe

    if any(change.name == "batch_size" for change in read_recipe(recipe).changes):
        raise BadInput(f"--recipe {recipe} sets the batch size; take that change out of it to sweep others")


def sizes_of(given: str) -> tuple[int, ...]:
    """Batch sizes with commas between them, in rising order.

    Raises:
        BadInput: one is no number of requests.
    """
    sizes = [text.strip() for text in given.split(",")]
    for text in sizes:
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_REQUESTS):
            raise BadInput(f"--batch-sizes {given!r}: {text!r} is no number of requests; give such as 1,8,64")
    return tuple(sorted(set(map(int, sizes))))


@dataclass(frozen=True, slots=True)
class Point:
    """One batch size: its Run, or why there is none."""

    batch_size: int
    run: Run | None = None
    status: str = "done"
    reason: str = ""

    @property
    def p99_ms(self) -> float | None:
        """What 99 % of an inference's steps keep."""
        return None if self.run is None else (self.run.step.get("latency_ms") or {}).get(PERCENTILE)

    def keeps(self, p99_ms: float) -> bool:
        """Whether 99 % of the steps take no longer."""
        return self.p99_ms is not None and self.p99_ms <= p99_ms


@dataclass(slots=True)
class Sweep:
    """A sweep under way. With ``folder`` every Run is written there as it comes, and what is there is kept."""

    plan: SweepPlan
    folder: Path | None = None
    points: list[Point] = field(default_factory=list)
    identity: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    complete: bool = False
    _goes_on: bool = False  # with what the folder holds

    def climb(self, *, budget_s: float | None = None, progress: Progress = silent) -> None:
        """Profile one size after the other, until there is no more to learn or ``budget_s`` are over.

        Raises:
            BadInput, mfu_kernels.errors.InvalidArgument: nothing runs, or the folder holds another sweep.
            TimeUp: the time was over before anything was measured.
            ToolBroke: the very first size ended its process.
        """
        end = inf if budget_s is None else monotonic() + budget_s
        progress("looking at the model", 0.0)
        self._identify(end)
        for size in self._sizes():

            def told(stage: str, size: int = size) -> None:
                progress(f"{size} requests: {stage}", self._share(size))

            try:
                self.points.append(self._kept(size) or self._measured(size, end, told))
            except TimeUp as error:
                if not self.done:
                    raise
                self.stopped = str(error)
                return
            self.keep()
        self.complete = True
        self.keep()

    def _sizes(self) -> Iterator[int]:
        if self.plan.sizes:
            yield from self.plan.sizes
            self.stopped = "all sizes that were asked for are done"
            return
        size = FIRST[self.plan.spec.mode]
        while not self.stopped:
            yield size
            size *= 2
            self.stopped = self._why_enough(size)

    def _share(self, size: int) -> float:
        """How far it is; of a sweep that ends by itself a guess."""
        if self.plan.sizes:
            return self.plan.sizes.index(size) / len(self.plan.sizes)
        return 1 - 1 / (2 + log2(size) / 4)

    def _why_enough(self, following: int) -> str:
        """Why ``following`` requests have nothing to tell any more; nothing where they have."""
        last = self.points[-1]
        if last.run is None:
            return f"{last.batch_size} requests: {last.reason}"
        if self.plan.p99_ms is not None and not last.keeps(self.plan.p99_ms):
            return f"{last.batch_size} requests take longer than --p99-ms {self.plan.p99_ms:g}"
        rates = [point.run.step["samples_per_s"] for point in self.points if point.run is not None]
        if len(rates) > 2 and max(rates[-2:]) < (1 + MIN_RISE) * max(rates[:-2]):
            return f"two doublings brought less than {100 * MIN_RISE:g} % more samples/s"
        return "no step has more requests" if following > MAX_REQUESTS else ""

    # One size

    def _measured(self, size: int, end: float, tell: Tell) -> Point:
        given = (replace(self.plan.spec, batch_size=size), self.plan.recipe)
        try:
            run = run_isolated(profiled, given, limit_s=end - monotonic(), tell=tell)
        except OutOfMemory as error:
            return self._without(size, "out of memory", error)
        except BadInput as error:
            return self._without(size, "refused", error)
        except ToolBroke as error:
            return self._without(size, "failed", error)
        except GaveUp as error:
            if monotonic() >= end:
                raise TimeUp(f"--budget was spent before a step of {size} requests was measured") from None
            return self._without(size, "failed", ToolBroke(f"{size} requests: {error}"))
        if self.folder is not None:
            write_run(run, _place(self.folder, size))
        return Point(size, run)

    def _without(self, size: int, status: str, error: MfubenchError) -> Point:
        """A size that does not run; if none did before it, there is nothing to tell but that."""
        if not self.done:
            raise error
        return Point(size, None, status, str(error))

    @property
    def done(self) -> list[tuple[int, Run]]:
        """The sizes that were measured."""
        return [(point.batch_size, point.run) for point in self.points if point.run is not None]

    # What is kept

    def _identify(self, end: float) -> None:
        """Whose this sweep is; a folder that holds another's is refused."""
        first = replace(self.plan.spec, batch_size=FIRST[self.plan.spec.mode])
        try:
            self.identity = run_isolated(identified, (first, self.plan.recipe), limit_s=end - monotonic())
        except GaveUp as error:
            if monotonic() >= end:
                raise TimeUp("--budget was spent before the model was built") from None
            raise ToolBroke(f"building the model: {error}") from None
        if self.folder is None or not (self.folder / FILE).exists():
            return
        there = kept_json(self.folder / FILE) or {}
        if there.get("schema_version") != SCHEMA_VERSION or not isinstance(there.get("identity"), dict):
            raise BadInput(f"{self.folder / FILE} is no sweep of this release; {ELSEWHERE}")
        require_same(self.folder / FILE, "sweep", there["identity"], self.identity)
        self._goes_on = True

    def _kept(self, size: int) -> Point | None:
        """A size that was measured before; None where it was not, or what is there is damaged."""
        if self.folder is None or not self._goes_on:
            return None
        try:
            return Point(size, read_run(_place(self.folder, size)))
        except BadInput:
            return None

    def keep(self) -> None:
        """Write the document into the folder, if there is one and anything to tell; the Runs are there already."""
        if self.folder is not None and self.done:
            write_json(self.folder / FILE, self.to_document())

    def to_document(self) -> dict[str, Any]:
        """Ready for JSON: every size with what it reached, and the best of them."""
        _, run = self.done[0]
        varies = ("batch_size", "data_hash")
        return {
            "schema_version": SCHEMA_VERSION,
            "identity": self.identity,
            "workload": {key: value for key, value in run.workload.items() if key not in varies},
            "p99_ms": self.plan.p99_ms,
            "best": self.best(),
            "complete": self.complete,
            "stopped": self.stopped,
            "points": [_described(point) for point in self.points],
            "peak": run.peak,
            "environment": run.environment,
            "method": METHOD,
        }

    def best(self) -> dict[str, int | None]:
        """Batch sizes: of the most throughput, of the knee before it, and of the most within the latency asked for."""
        rates = {size: run.step["samples_per_s"] for size, run in self.done}
        most = max(rates, key=lambda size: rates[size])
        limit = self.plan.p99_ms
        within = [point.batch_size for point in self.points if limit is not None and point.keeps(limit)]
        return {
            "most_samples_per_s": most,
            "knee": min(size for size, rate in rates.items() if rate >= KNEE * rates[most]),
            "within_p99": max(within, key=lambda size: rates[size]) if within else None,
        }


def _place(folder: Path, size: int) -> Path:
    """Where a size's Run is kept."""
    return folder / f"batch-{size}"


def _described(point: Point) -> dict[str, Any]:
    told: dict[str, Any] = {"batch_size": point.batch_size, "status": point.status, "reason": point.reason}
    if point.run is None:
        return told
    return {
        **told,
        **asdict(Row.of(point.run)),
        "latency_ms": point.run.step.get("latency_ms"),
        "shares": shares_of(point.run),
        "warnings": point.run.warnings,
    }


def shares_of(run: Run) -> dict[str, float]:
    """The share of the step of each family of causes, in the ledger's order."""
    found = dict.fromkeys(CAUSE_FAMILIES, 0.0)
    for line in run.ledger:
        found[family_of(line.cause)] += line.share
    return found


# In processes of their own

Given = tuple[WorkloadSpec, Path | None]  # and a recipe


def profiled(given: Given, tell: Tell) -> Run:
    """The Run of a size."""
    from .optimize.recipe import prepare_with, read_recipe
    from .profiling import profile, profile_workload

    spec, recipe = given

    def told(stage: str, _done: float) -> None:
        tell(stage)

    if recipe is None:
        return profile(spec, progress=told)
    return profile_workload(prepare_with(spec, read_recipe(recipe)), progress=told)


def identified(given: Given, tell: Tell) -> dict[str, Any]:
    """What two sweeps must have in common for the second to go on with the first."""
    from .optimize.tasks import identify

    spec, recipe = given
    asked = ("compile", "candidates", "overrides", "peak", "steps", "seed", "data")
    found = identify(spec, tell) | {key: getattr(spec, key) for key in asked}
    found["recipe"] = recipe and digest(recipe.read_text(encoding="utf-8"))
    del found["batch_size"]
    return found
