"""What a campaign draws: where the step of its best profile goes, and how its kernels stand beside their peers."""

from collections.abc import Sequence
from typing import Any

from mfubench.figures import Dot, Dots, waterfall
from mfubench.run import run_of

from . import format as fmt
from .blocks import Chart
from .sections import waterfall_chart

Pair = tuple[Any, Any]  # rows of a bench: ours, and a peer's of the same run or None


def best_step(documents: Sequence[Any]) -> list[Chart]:
    """The waterfall of the profile that uses the device best, of those whose MFU is known."""
    known = [document for document in documents if document["mfu_of_measured_peak"] is not None]
    if not known:
        return []
    best = run_of(max(known, key=lambda document: document["mfu_of_measured_peak"]), "the campaign's best profile")
    requests = fmt.count(best.workload["batch_size"])
    return waterfall_chart(f"MFU waterfall of {best.title}, {requests} requests, {best.device}", waterfall(best))


def beside_peers(pairs: Sequence[Pair]) -> list[Chart]:
    """The fastest peer's time in ours, by op, shape and direction."""
    dots = [_dot(ours, peer) for ours, peer in pairs if peer is not None]
    if not dots:
        return []
    faster = sum(dot.low > 1 for dot in dots)
    summary = (
        "How many times as long as ours the fastest peer that computes the same takes, with its 95 % interval: right "
        f"of 1 ours is faster, as it is in {faster} of {len(dots)}."
    )
    title = "Kernels beside their fastest peer"
    return [Chart(title, summary, Dots("the fastest peer's time in ours", dots, ratios=True))]


def _dot(ours: Any, peer: Any) -> Dot:
    row = f"{ours['op']}, {ours['shape']}, {ours['direction']}"
    value, low, high = peer["times_ours"]
    about = f"{row}: {peer['implementation']} takes {fmt.interval(value, low, high)} times as long"
    return Dot(row, "fastest peer", value, low, high, about)
