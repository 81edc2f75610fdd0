"""Blocks of steps in turn: each of them twice in a block, in an order from which a drift falls out."""

from typing import Any

import pytest
import torch

from mfubench.measure.timing import time_in_blocks

CPU = torch.device("cpu")


@pytest.mark.parametrize(("first", "order"), [(0, "abba baab"), (3, "baab abba")])
def test_a_steady_drift_falls_out_of_a_blocks_ratio(first: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn takes as much longer than the one before: a's two turns of a block lose as much by it as b's."""
    now, ran = [0.0], list[tuple[str, int]]()

    def takes(name: str, seconds: float) -> Any:
        def step(index: int) -> None:
            now[0] += seconds * (1 + 0.1 * len(ran))
            ran.append((name, index))

        return step

    monkeypatch.setattr("mfubench.measure.timing.perf_counter", lambda: now[0])
    a, b = time_in_blocks([takes("a", 0.02), takes("b", 0.03)], device=CPU, first=first, num_blocks=2)
    assert [index for _, index in ran] == [first] * 4 + [first + 1] * 4
    assert " ".join("".join(name for name, index in ran if index == block) for block in (first, first + 1)) == order
    assert len(a) == len(b) == 2 and all(
        sum(after) / sum(before) == pytest.approx(1.5) for before, after in zip(a, b, strict=True)
    )
    before, after = (a[0], b[0]) if order.startswith("a") else (b[0], a[0])
    assert after[0] < after[1] and before[1] / before[0] == pytest.approx(1.3)
