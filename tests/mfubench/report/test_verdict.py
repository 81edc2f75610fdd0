"""What a headline says of padding, of FLOPs that are missing and of other ranks: what is known, and no more."""

from typing import Any

import pytest

from mfubench.report.verdict import fed, headline
from tests.mfubench.report.factory import a_run


@pytest.mark.parametrize(
    ("flops", "told"),
    [
        ({"model": 100.0, "padded": 134.0}, "it would need 1.34 times its model FLOPs"),
        ({"model": 100.0, "padded": 100.0}, "no row is shorter than its batch's longest"),
        ({"model": 0.0, "padded": 0.0}, "no row is shorter than its batch's longest"),
        ({"model": None, "padded": None}, "its FLOPs are not known"),
        ({"model": 100.0, "padded": 100.0, "counts_agree": None}, "padding is unknown, as no padding mask or offsets"),
        (
            {"model": 90.0, "padded": 100.0, "counts_agree": None},
            "masks drop 10.00 % of its FLOPs; other padding is unknown",
        ),
    ],
)
def test_padding_in_a_headline(flops: dict[str, Any], told: str) -> None:
    assert told in headline(a_run(flops=flops)).partition("; ")[2]


@pytest.mark.parametrize(
    ("unknown", "mfu", "told"),
    [([], 0.2, "MFU 20.0 %, 41.0 %"), (["a::b"], 0.2, "MFU at least 20.0 %, at least 41.0 %"), (["a::b"], None, "n/a")],
)
def test_utilisation_where_flops_are_missing(unknown: list[str], mfu: float | None, told: str) -> None:
    said = headline(a_run(flops={"unknown_ops": unknown}, mfu=mfu))
    assert told in said and "at least n/a" not in said


@pytest.mark.parametrize(("mfu", "told"), [(None, "900 samples/s; "), (0.25, "900 samples/s at an MFU of 25.0 %; ")])
def test_one_rank_of_several(mfu: float | None, told: str) -> None:
    job = {"rank": 0, "world_size": 4, "samples_per_s": 900.0, "mfu": mfu}
    run = a_run()
    run.parallel, run.ranks = job, [{}]
    said = headline(run)
    assert ", rank 0 of 4: " in said and f"its 4 ranks together {told}" in said


@pytest.mark.parametrize(
    ("latency", "told"),
    [
        (None, None),  # of a training
        ({"50": None, "90": None, "99": None, "99.9": None}, None),
        ({"50": 5.0, "90": None, "99": None, "99.9": None}, None),  # which says no more than the median
        ({"50": 5.0, "90": 6.0, "99": 9.25, "99.9": None}, "99 % of steps done within 9.250 ms, MFU"),
    ],
)
def test_an_inference_says_how_slow_its_slowest_are(latency: dict[str, float | None] | None, told: str | None) -> None:
    said = headline(a_run(step={"latency_ms": latency}))
    assert (told in said) if told else ("of steps done" not in said)


def test_what_a_loader_feeds_is_told_beside_what_its_batches_at_hand_give() -> None:
    loader = {"samples_per_s": 651.05, "waited_share": 0.7, "begun_again": 0, "timings_ms": [49.0]}
    run = a_run(step={"loader": loader})
    assert " samples/s on average with batches at hand, 651 samples/s fed by its loader, MFU" in headline(run)
    assert fed(run) == "651 samples/s, MFU of the measured GEMM peak 10.2 %; 70.0 % of the time is waiting for batches"
    assert fed(a_run(step={"loader": loader}, mfu=0.2)).startswith("651 samples/s, MFU 5.00 %; ")
    assert fed(a_run()) == "" and "batches at hand" not in headline(a_run())
