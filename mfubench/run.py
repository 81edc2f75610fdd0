"""The Run document: what one profiled workload left behind, and the only thing that passes between commands.

Times are in ms; FLOPs are per step, a mean over the timed steps; bytes are bytes. A sample is a request: its candidates
are scored together, and ``samples_per_s`` counts requests as ``requests_per_s`` does, also for a model that sees each
candidate as an impression of its own; ``candidates_per_s`` counts those. ``schema_version`` guards the reader: an older
document is migrated or refused, never guessed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from .errors import BadInput
from .files import read_json
from .files import write_text as write_text  # also for kernels/locks.py, whose hash is in what was measured

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 1
LONGEST_MS = 1e9  # of a step: eleven days
_COUNTED = (
    "2 per multiply-add, matmul-like work only, true sequence lengths, only the pairs a mask keeps, {}, embedding "
    "look-ups 0"
)
FLOP_CONVENTIONS = {
    "train": _COUNTED.format(
        "forward plus backward, recomputation excluded, no gradient counted for an input that needs none"
    ),
    "infer": _COUNTED.format("the forward alone"),
}
"""What model FLOPs are, by the mode of a workload."""

TOGETHER = " + "  # between the names of modules that share a kernel
_IN_A_LIST = re.compile(r"(?<![^.])\d+(?![^.])")  # a module's number among its siblings
CAUSE_FAMILIES = (
    *("padding", "recompute", "useful", "amortized", "peak_gap", "dtype", "memory_bound", "inefficiency"),
    *("optimizer", "data", "communication", "launch", "not_attributed"),
)
"""What a cause's name begins with, up to a dot, in the order in which the ledger accounts."""


def pattern_of(module: str) -> str:
    """The name that the modules of a list have in common: ``blocks.*.mlp``."""
    return _IN_A_LIST.sub("*", module)


def family_of(cause: str) -> str:
    """The part of a cause's name that the ledger accounts by."""
    return cause.partition(".")[0]


def family_place(cause: str) -> int:
    """Where a cause's family stands in the ledger; the last place for one that this release does not know."""
    family = family_of(cause)
    return CAUSE_FAMILIES.index(family) if family in CAUSE_FAMILIES else len(CAUSE_FAMILIES)


def title_of(workload: Mapping[str, Any]) -> str:
    """Model, size, mode and dtype of a described workload in a few words."""
    return " ".join(str(workload[key]) for key in ("model", "size", "mode", "dtype") if workload.get(key))


@dataclass(slots=True)
class ModuleRow:
    """One module's own work, its children's not included, so that the rows of a Run sum to its totals.

    ``name`` is the fully qualified name; work outside the model has a name in parentheses, such as ``(optimizer)``.
    ``time_ms`` and ``share`` are the trace's, scaled to the timing pass; ``bytes`` the least that must move, and
    ``intensity`` the model FLOPs for each; ``attainable_ms`` what this device's measured roofline allows for the
    useful work; ``memory_bytes`` what was alive at the step's peak and belongs to this module, ``activation_bytes``
    what it made in the forward pass that the backward still needs. ``causes`` are the milliseconds that led to the
    verdict.
    """

    name: str
    type: str
    fwd_model_flops: int
    bwd_model_flops: int
    bytes: int
    time_ms: float
    share: float
    verdict: str
    mfu: float | None
    memory_bytes: int
    fwd_time_ms: float = 0.0
    bwd_time_ms: float = 0.0
    attainable_ms: float = 0.0
    intensity: float | None = None
    activation_bytes: int = 0
    causes: dict[str, float] = field(default_factory=dict)

    @property
    def model_flops(self) -> int:
        """Forward and backward."""
        return self.fwd_model_flops + self.bwd_model_flops

    @property
    def achieved_tflops(self) -> float | None:
        """Model FLOPs for each second of the module's time; None without time."""
        return self.model_flops / self.time_ms / 1e9 if self.time_ms else None


@dataclass(slots=True)
class KernelRow:
    """Device time of one operator, or of the kernels that it launched, in one module: the trace's share, scaled.

    ``calls`` is a step's mean. A kernel that serves several modules at once, as a compiler fuses them, names them all
    in ``module``, joined by TOGETHER.
    """

    module: str
    direction: str
    operator: str
    kind: str
    time_ms: float
    calls: float


@dataclass(slots=True)
class KernelConfig:
    """The config that launches of one of our kernels took at one key, and its origin: a default, or which lock."""

    kernel: str
    key: str
    config: str
    origin: str


@dataclass(slots=True)
class LedgerLine:
    """One cause of the step's time; the lines of a Run sum to the step time."""

    cause: str
    ms: float
    share: float
    modules: list[str]


@dataclass(slots=True, repr=False)
class Run:
    """One profiled workload. The keys are described in the project's design; ``to_json`` writes them as they are.

    What a pass that was left out would have brought is None or empty, and ``not_measured`` says why. A Run of
    several ranks is rank 0's: ``parallel`` says what these say to each other and reach together, and ``ranks`` has a
    row for each; of one alone they are None and empty.
    """

    workload: dict[str, Any]
    environment: dict[str, Any]
    peak: dict[str, Any]
    step: dict[str, Any]
    flops: dict[str, Any]
    mfu: float | None
    hfu: float | None
    mfu_of_measured_peak: float | None
    hfu_of_measured_peak: float | None
    modules: list[ModuleRow]
    kernels: list[KernelRow]
    ledger: list[LedgerLine]
    hotspots: list[dict[str, Any]]
    memory: dict[str, Any]
    nvml: dict[str, Any]
    trace: dict[str, Any]
    impls: dict[str, str]
    not_measured: list[str]
    warnings: list[str]
    parallel: dict[str, Any] | None = None
    ranks: list[Any] = field(default_factory=list)
    kernel_configs: list[KernelConfig] = field(default_factory=list)
    flop_convention: str = FLOP_CONVENTIONS["train"]
    schema_version: int = SCHEMA_VERSION

    def __repr__(self) -> str:
        """In a line: a notebook shows it, and all of it is a long document."""
        return f"<Run of {self.title}: {self.step['time_ms']['median']:.4g} ms a step>"

    @property
    def peaks(self) -> list[dict[str, Any]]:
        """Measured and datasheet peak by dtype: those that the step used, at least the run's own, and those kept."""
        own = {key: self.peak[key] for key in ("dtype", "measured_tflops", "measured_date", "datasheet_tflops")}
        return self.peak.get("by_dtype") or [own | {"used": True}]

    def of_modules(self, key: str) -> list[Any]:
        """One number of each module, in their order; None, not the 0 that is kept, where its pass was left out."""
        if key.endswith("_flops"):
            measured = self.flops.get("model")
        elif key in ("memory_bytes", "activation_bytes"):
            measured = self.memory.get("peak_bytes")
        else:
            measured = self.trace.get("steps")
        return [getattr(row, key) if measured else None for row in self.modules]

    @property
    def world_size(self) -> int:
        """How many ranks worked on the step."""
        return 1 if self.parallel is None else int(self.parallel["world_size"])

    @property
    def title(self) -> str:
        """Model, size, mode and dtype in a few words."""
        return title_of(self.workload)

    @property
    def device(self) -> str:
        """The device's name, or its kind where it has none."""
        return str(self.environment.get("device_name") or self.workload["device"])

    def to_json(self) -> str:
        """The document as JSON, keys in the order of the dataclass, ``schema_version`` first."""
        document = asdict(self)
        return json.dumps({"schema_version": document.pop("schema_version"), **document}, indent=1)

    def modules_frame(self) -> "pandas.DataFrame":
        """The modules as a pandas table, one row each."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.modules])

    def kernels_frame(self) -> "pandas.DataFrame":
        """The operators' device time as a pandas table, one row for each module, direction and operator."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.kernels])


def read_run(path: Path | str) -> Run:
    """Read ``path``, a run.json or a folder that holds one.

    Raises:
        BadInput: it does not exist, is not a Run document, or has a schema version that this release cannot read.
    """
    path = Path(path)
    file = path / "run.json" if path.is_dir() else path
    return run_of(read_json(file, "give a run.json that `mfubench profile --out` wrote"), str(file))


def write_run(run: Run, folder: Path) -> None:
    """Write ``run`` as the run.json of ``folder``, which is made where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "run.json", run.to_json())


# What readers take for granted inside a Run, by dotted path.
_EXPECTED: Mapping[str, Any] = {
    **dict.fromkeys(("environment", "impls", "workload.overrides"), dict[str, Any]),
    **dict.fromkeys(("flops.unknown_ops", "warnings", "not_measured"), list[str]),
    **{"memory.by_kind": dict[str, float], "step.timings_ms": list[float], "parallel": dict[str, Any] | None},
    **dict.fromkeys((f"workload.{key}" for key in ("model", "mode", "dtype", "device")), str),
    **dict.fromkeys((f"workload.{key}" for key in ("impl", "compile", "data", "data_hash")), str),
    **{"workload.size": str | None, "workload.batch_size": int, "workload.seed": int},
    **dict.fromkeys(("peak.dtype", "peak.in_use", "memory.phase", "flop_convention"), str),
    **dict.fromkeys((f"step.time_ms.{key}" for key in ("median", "ci95_low", "ci95_high")), float),
    **dict.fromkeys((f"flops.{key}" for key in ("model", "padded", "hardware", "coverage")), float | None),
    **dict.fromkeys((f"trace.{key}" for key in ("distortion", "attributed_share")), float | None),
    **dict.fromkeys(("peak.measured_tflops", "peak.bandwidth_gb_s", "step.samples_per_s", "trace.steps"), float),
    **dict.fromkeys(("memory.peak_bytes", "mfu_of_measured_peak", "hfu_of_measured_peak"), float | None),
    **dict.fromkeys(("mfu", "hfu", "peak.datasheet_tflops", "memory.device_peak_bytes"), float | None),
    **dict.fromkeys(("peak.source", "peak.measured_date", "trace.path"), str | None),
    "nvml.available": bool,
}
# The same where a GPU's driver was there.
_EXPECTED_OF_A_GPU: Mapping[str, Any] = {
    **dict.fromkeys((f"nvml.{key}" for key in ("counters", "energy", "clock_events", "limits", "gpm")), dict[str, Any]),
    **dict.fromkeys((f"nvml.{key}" for key in ("window_s", "window_steps", "interval_s")), float),
    "nvml.cross_check": dict[str, Any] | None,
}
# The same of a job of several ranks, and of each of them.
_EXPECTED_OF_A_JOB: Mapping[str, Any] = {
    **{"parallel.world_size": int, "parallel.backend": str},
    **dict.fromkeys(("parallel.exposed_ms", "parallel.communication_ms"), float),
}
_EXPECTED_OF_A_LOADER: Mapping[str, Any] = {
    **dict.fromkeys(("loader.samples_per_s", "loader.waited_share"), float),
    **{"loader.begun_again": int, "loader.timings_ms": list[float]},
}
_COLLECTIVE = {"name": str, "calls": float, "bytes": float}
_RANK = {
    **{"rank": int, "host": str, "device": str},
    **dict.fromkeys(("step_ms", "mean_step_ms", "samples_per_s", "exposed_ms", "communication_ms"), float),
    **dict.fromkeys(("model_flops", "mfu", "mfu_of_measured_peak", "peak_bytes", "device_peak_bytes"), float | None),
}
_HOTSPOT = {**dict.fromkeys(("module", "cause", "advice"), str), **dict.fromkeys(("time_ms", "won_ms"), float)}
_PEAK = {"dtype": str, "measured_tflops": float | None, "measured_date": str | None, "datasheet_tflops": float | None}


def _check(document: Any, file: str) -> None:
    """Refuse a document whose inside is not a Run's, so that no reader stumbles over it."""
    _check_inside(document, _EXPECTED, file)
    if document["nvml"]["available"]:
        _check_inside(document, _EXPECTED_OF_A_GPU, file)
    if document["parallel"] is not None:
        _check_inside(document, _EXPECTED_OF_A_JOB, file)
        _check_rows(document["parallel"].get("collectives"), _COLLECTIVE, f"{file}: parallel.collectives")
    _check_rows(document["ranks"], _RANK, f"{file}: ranks")
    _check_rows(document["hotspots"], _HOTSPOT, f"{file}: hotspots")
    _check_rows(document["peak"].get("by_dtype", []), _PEAK | {"used": bool}, f"{file}: peak.by_dtype")
    if not _is(document["step"].get("latency_ms"), dict[str, float | None] | None):
        raise BadInput(f"{file}: step.latency_ms is no percentiles; it is no whole Run; profile again")
    if (loader := document["step"].get("loader")) is not None:
        _check_inside({"loader": loader}, _EXPECTED_OF_A_LOADER, f"{file}: step")
    times = [document["step"]["time_ms"][key] for key in ("ci95_low", "median", "ci95_high")]
    if not 0 < times[0] <= times[1] <= times[2] < LONGEST_MS:
        raise BadInput(f"{file}: step.time_ms is {times}, no interval of a time; it is no whole Run; profile again")


def _check_inside(document: Any, expected: Mapping[str, Any], file: str) -> None:
    for path, hint in expected.items():
        *outer, last = path.split(".")
        inside = document
        for key in outer:
            inside = inside.get(key) if isinstance(inside, dict) else None
        if not isinstance(inside, dict) or last not in inside or not _is(inside[last], hint):
            given = repr(inside[last])[:40] if isinstance(inside, dict) and last in inside else "missing"
            raise BadInput(f"{file}: {path} is {given}; it is no whole Run; profile again")


def _check_rows(rows: Any, hints: Mapping[str, Any], where: str) -> None:
    """Refuse rows that lack one of ``hints``, or have another kind of value there."""
    if not isinstance(rows, list):
        raise BadInput(f"{where} is {repr(rows)[:40]}; it is no whole Run; profile again")
    for row in rows:
        for key, hint in hints.items():
            if not isinstance(row, dict) or not _is(row.get(key), hint):
                raise BadInput(f"{where} is {repr(row)[:40]}, a row that does not fit: {key}; profile again")


def _is(value: Any, hint: Any) -> bool:
    """Whether a JSON value is what a type hint says: whole numbers are floats, too, and no bool is a number."""
    inner = get_args(hint)
    if hint is Any:
        return True
    if get_origin(hint) is UnionType:
        return any(_is(value, each) for each in inner)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is(each, inner[0]) for each in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_is(each, inner[1]) for each in value.values())
    return type(value) in ((int, float) if hint is float else (hint,))


def _rows(kind: Any, rows: Any, where: str) -> list[Any]:
    """Dataclasses of ``kind``."""
    hints = get_type_hints(kind)
    needed = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    _check_rows(rows, {name: hints[name] for name in needed}, where)
    for row in rows:
        _check_rows([row], {name: hints.get(name) for name in row}, where)
    return [kind(**row) for row in rows]


_ROWS: Mapping[str, Any] = {
    "modules": ModuleRow,
    "kernels": KernelRow,
    "ledger": LedgerLine,
    "kernel_configs": KernelConfig,
}


def run_of(document: Any, file: str) -> Run:
    """The Run of a parsed ``document``, which ``file`` holds.

    Raises:
        BadInput: as `read_run`.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise BadInput(f"{file} has schema_version {version!r}; this release reads {SCHEMA_VERSION}; profile again")
    document = {"kernel_configs": [], **document}  # older ones of this version say nothing of them
    known = {f.name for f in fields(Run)}
    missing = known - document.keys()
    if missing:
        raise BadInput(f"{file} lacks {', '.join(sorted(missing))}; it is no whole Run; profile again")
    _check(document, file)
    values = {key: document[key] for key in known}
    for key, kind in _ROWS.items():
        values[key] = _rows(kind, values[key], f"{file}: {key}")
    return Run(**values)
