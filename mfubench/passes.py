"""What the passes of a profile bring."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .attribute.attribution import Attribution
from .attribute.roofline import Ceilings
from .measure.calibrate import Calibration
from .measure.compiled import Compilation
from .measure.count import Count
from .measure.memory import MemoryPeak
from .measure.peaks import Datasheet
from .workload.loader import Fed

LATER = {  # than the timing pass: what each pass brings
    "fed": "how long steps wait for the loader",
    "counts": "FLOPs, bytes, and MFU with them",
    "attribution": "modules, causes and kernels (the trace)",
    "memory": "memory by module and kind",
}


@dataclass(slots=True)
class Passes:
    """What the passes brought, and the peaks that bound it; ``missing`` says why a pass brought nothing.

    ``alone_ms``: of an inference, steps of which each was waited for. ``fed``: steps that waited for a loader.
    """

    timings_ms: list[float]
    nvml: dict[str, Any]
    sheet_tflops: float | None
    sheet: Datasheet | None
    calibration: Calibration
    ceilings: Ceilings
    device_peak: int | None  # bytes, by the device's own account
    compilation: Compilation | None  # None where nothing was compiled
    trace_path: Path | None  # where the trace is kept
    alone_ms: list[float] | None = None
    fed: Fed | None = None
    counts: list[Count] | None = None
    attribution: Attribution | None = None
    memory: MemoryPeak | None = None
    missing: dict[str, str] = field(default_factory=lambda: dict.fromkeys(LATER, "not reached"))
