"""The ceilings of a device, and what a group of operators loses against them, cause by cause."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from mfu_kernels.cost import OpClass
from mfubench.measure.count import Work
from mfubench.run import family_of

Split = defaultdict[str, float]  # milliseconds by cause
DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates that bound the device: TFLOP/s and GB/s.

    ``in_use_tflops`` is the peak that MFU is reported against (datasheet, else measured), ``measured_tflops`` what a
    large GEMM reaches in the run's dtype, ``by_dtype`` the same for other dtypes that were seen, ``bandwidth_gb_s`` a
    large copy.
    """

    in_use_tflops: float
    measured_tflops: float
    bandwidth_gb_s: float
    by_dtype: dict[str, float]

    def flop_ms(self, flops: float, tflops: float) -> float:
        """Milliseconds that ``flops`` take at ``tflops``."""
        return flops / (tflops * 1e9)

    def byte_ms(self, num_bytes: float) -> float:
        """Milliseconds that ``num_bytes`` take at the copy bandwidth."""
        return num_bytes / (self.bandwidth_gb_s * 1e6)

    def attainable_ms(self, flops: float, num_bytes: float) -> float:
        """Milliseconds on the measured roofline: the longer of computing and moving."""
        return max(self.flop_ms(flops, self.measured_tflops), self.byte_ms(num_bytes))

    def least_ms(self, work: Work) -> float:
        """Milliseconds that ``work`` takes at least: the longer of its hardware FLOPs and its bytes."""
        return max(self.byte_ms(work.bytes), self.flop_ms(work.hardware, self.own_tflops(work)))

    def own_tflops(self, work: Work) -> float:
        """Measured peak of the dtype that most of ``work`` was done in, which may not be the run's."""
        if not work.dtypes:
            return self.measured_tflops
        dtype = max(work.dtypes, key=lambda name: work.dtypes[name])
        return self.by_dtype.get(DTYPE_NAMES.get(dtype, dtype), self.measured_tflops)


def causes(time_ms: float, work: Work, kind: OpClass, ceilings: Ceilings) -> Split:
    """Split ``time_ms`` of one group of operators into causes that add up to it, in the ledger's order.

    A negative ``inefficiency`` means a group that is faster than its floor: data that stay in a cache, a wrong formula
    or an old calibration. It is left as it is. ``amortized`` is negative: model FLOPs that were executed once for the
    whole batch.
    """
    split: Split = defaultdict(float)
    if not work.hardware and not work.model:
        floor = ceilings.byte_ms(work.bytes)
        split[f"memory_bound.{kind}"] = floor
        split[f"inefficiency.{kind}"] = time_ms - floor
        return split
    split["useful"] = ceilings.flop_ms(work.model, ceilings.in_use_tflops)
    executed = work.hardware - work.recomputed - work.unwanted
    useful = min(work.model, executed)
    if useful < work.model:
        split["amortized"] = -ceilings.flop_ms(work.model - useful, ceilings.in_use_tflops)
    hardware = work.hardware or 1
    useful_share = (useful + work.unwanted) / hardware if work.hardware else 1.0  # what nobody wanted is inefficiency
    split["padding"] = time_ms * (executed - useful) / hardware
    split["recompute"] = time_ms * work.recomputed / hardware
    at_peak = ceilings.flop_ms(useful, ceilings.in_use_tflops)
    at_measured = ceilings.flop_ms(useful, ceilings.measured_tflops)
    at_own = ceilings.flop_ms(useful, ceilings.own_tflops(work))
    useful_ms, useful_byte_ms = time_ms * useful_share, ceilings.byte_ms(work.bytes * useful_share)
    split["peak_gap"] = at_measured - at_peak
    split["dtype"] = at_own - at_measured
    split[f"memory_bound.{kind}"] = max(0.0, useful_byte_ms - at_own)
    split[f"inefficiency.{kind}"] = useful_ms - max(at_own, useful_byte_ms)
    return split


def winnable(split: Mapping[str, float]) -> dict[str, float]:
    """What of a module's causes could be won: all that is lost.

    Operators that were faster than their floor did not lose as much to memory as it says.
    """
    lost = {cause: ms for cause, ms in split.items() if ms > 0}
    for cause, ms in split.items():
        family, _, kind = cause.partition(".")
        bound = f"memory_bound.{kind}"
        if ms < 0 and family == "inefficiency" and bound in lost:
            lost[bound] += ms
    return {cause: ms for cause, ms in lost.items() if ms > 0}


VERDICTS = {
    "useful": "compute-bound",
    "peak_gap": "compute-bound",
    "padding": "padding-bound",
    "recompute": "recompute-bound",
    "dtype": "dtype-bound",
    "launch": "launch-bound",
    "communication": "communication-bound",
    "memory_bound": "memory-bound",
    "inefficiency": "inefficient",
}


def verdict(split: Mapping[str, float]) -> str:
    """The largest cause of a module's own slice of the step, as a verdict; causes of one family count together."""
    families: Split = defaultdict(float)
    for cause, ms in split.items():
        family = family_of(cause)
        families[VERDICTS.get(family, family)] += ms
    if not families:
        return "idle"
    name, ms = max(families.items(), key=lambda item: item[1])
    return name if ms > 0 else "idle"
