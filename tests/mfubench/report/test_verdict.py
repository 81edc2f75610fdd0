"""What a headline says of padding: what is known of it, and no more."""

from typing import Any

import pytest

from mfubench.report.verdict import headline
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
