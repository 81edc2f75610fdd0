"""The GPU that a plan is for: its peaks, bandwidth and memory, by its datasheet or as a Run measured them."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from mfubench.attribute.roofline import Ceilings
from mfubench.errors import BadInput, UnknownAccelerator
from mfubench.kernels.targets import TARGETS
from mfubench.measure.peaks import DATASHEETS, DTYPES, Datasheet, datasheet
from mfubench.run import Run
from mfubench.workload.spec import CHOICES

MIB = 1 << 20
GIB = 1 << 30
LEAST_CAPABILITY = 80  # of kernels of ours
PLAIN_TARGET = "sm_80"  # whose forms of the kernels run on what has none of its own
DATASHEET, MEASURED = "datasheet", "measured"


@dataclass(frozen=True, slots=True)
class Gpu:
    """What bounds a step there: TFLOP/s by dtype, GB/s, bytes of memory (None: not known).

    ``datasheet_tflops`` is what MFU is against; ``tflops`` and ``bandwidth_gb_s`` are ``basis``, of ``source``.
    """

    name: str
    capability: int
    dtype: str
    datasheet_tflops: float
    tflops: Mapping[str, float]
    bandwidth_gb_s: float
    memory_bytes: int | None
    basis: str
    source: str

    @property
    def runs_kernels(self) -> bool:
        """Whether kernels of ours run there."""
        return self.capability >= LEAST_CAPABILITY

    @property
    def target(self) -> str:
        """The generation whose forms of the kernels run there."""
        own = f"sm_{self.capability}"
        return own if own in TARGETS else PLAIN_TARGET

    def ceilings(self) -> Ceilings:
        """As the ledger takes them."""
        rates = {name: rate for name, rate in self.tflops.items() if (self.dtype, name) != ("tf32", "fp32")}
        return Ceilings(self.datasheet_tflops, self.tflops[self.dtype], self.bandwidth_gb_s, rates)


def known_gpu(name: str, dtype: str, memory_gib: float | None = None) -> Gpu:
    """The GPU called ``name``, as its datasheet or its driver calls it; ``memory_gib`` in place of what it has.

    Raises:
        BadInput: no such GPU is known, or it has no peak of ``dtype``.
    """
    sheet = sheet_of(name)
    tflops = {dtype: rate for dtype in DTYPES if (rate := sheet.tflops(dtype)) is not None}
    memory = sheet.memory_mib and sheet.memory_mib * MIB
    return Gpu(
        sheet.product, sheet.capability, dtype, _peak(sheet, dtype), tflops, sheet.bandwidth_gb_s,
        memory if memory_gib is None else round(memory_gib * GIB), DATASHEET, sheet.source,
    )  # fmt: skip


def gpu_of(run: Run, dtype: str, memory_gib: float | None = None) -> Gpu:
    """The GPU that ``run`` was profiled on, with the peaks that were measured there.

    Raises:
        BadInput: it is no GPU, has no datasheet, or nobody measured its peak of ``dtype``.
    """
    if run.workload["device"] != "cuda":
        raise BadInput(f"{run.title} was profiled on a {run.workload['device']}; --like takes a run on a GPU")
    sheet = datasheet(run.device)
    measured = {str(row["dtype"]): row["measured_tflops"] for row in run.peaks if row["measured_tflops"]}
    if dtype not in measured:
        raise BadInput(
            f"{run.title} knows no measured {dtype} peak, only {', '.join(measured)}; give one of them as --dtype"
        )
    memory = run.environment.get("device_memory_bytes")
    return Gpu(
        run.device, sheet.capability, dtype, _peak(sheet, dtype), measured, run.peak["bandwidth_gb_s"],
        memory if memory_gib is None else round(memory_gib * GIB), MEASURED,
        f"measured on {run.peak['measured_date']}: {run.title}",
    )  # fmt: skip


def sheet_of(name: str) -> Datasheet:
    """The datasheet of a GPU by its product's or its driver's name.

    Raises:
        BadInput: none is known by that name.
    """
    for sheet in DATASHEETS:
        if sheet.product.casefold() == " ".join(name.casefold().split()):
            return sheet
    try:
        return datasheet(name)
    except UnknownAccelerator:
        products = [sheet.product for sheet in DATASHEETS]
        near = [product for product in products if name.casefold() in product.casefold()]
        near = near or get_close_matches(name, products, 1)
        hint = f" did you mean {' or '.join(near)}?" if near else ""
        raise BadInput(f"--gpu {name!r} is unknown;{hint} allowed: {', '.join(products)}; or --like a run") from None


def _peak(sheet: Datasheet, dtype: str) -> float:
    peak = sheet.tflops(dtype)
    if peak is None:
        others = [name for name in CHOICES["dtype"] if sheet.tflops(name)]
        raise BadInput(f"{sheet.product} has no {dtype} peak; use --dtype {' or '.join(others)}")
    return peak
