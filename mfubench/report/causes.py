"""What the causes of the ledger mean, in words for the reader of a report."""

from collections.abc import Iterable

from mfubench.run import LedgerLine, family_of

MEANING = {
    "padding": "work on padded or masked-out positions; jagged ops, bucketing or is_causal for a mask win it back",
    "recompute": "a forward pass or scores computed a second time",
    "useful": "the model's FLOPs at the peak in use: the only time that counts as MFU",
    "amortized": "model FLOPs done once for the whole batch instead of once a sample: time that was never spent, so "
    "below zero",
    "peak_gap": "between the peak in use and what a large GEMM reaches on this device",
    "dtype": "work done in a slower dtype than the run's",
    "memory_bound": "moving bytes beyond what the arithmetic takes; fusing wins it back",
    "inefficiency": "above the op's own roofline: a better kernel, shape or dtype. Below zero, a formula or the "
    "calibration is wrong",
    "optimizer": "the whole optimizer phase",
    "data": "waiting for the next batch",
    "communication": "waiting for data from other ranks, or for ranks that are late, with no work to hide it",
    "launch": "the device idle while the host issues work or waits for it; on a CPU, the time between ops",
    "not_attributed": "what no line above explains",
}


def meanings(lines: Iterable[LedgerLine]) -> list[tuple[str, str]]:
    """The meaning of each kind of cause that occurs, in the order in which they occur."""
    kinds = dict.fromkeys(family_of(line.cause) for line in lines)
    return [(kind, MEANING[kind]) for kind in kinds if kind in MEANING]
