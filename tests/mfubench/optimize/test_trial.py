"""A trial in this process: on which batches its numbers are checked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mfubench.optimize.changes import UseImpl
from mfubench.optimize.trial import Request, try_change
from mfubench.workload.spec import WorkloadSpec
from tests.mfubench.optimize import small_model
from tests.mfubench.optimize.conftest import STAND_IN

FIXED = 5


def build() -> tuple[Any, Callable[..., Any], Any, Any]:
    """The small model, of which there are batches of one size alone."""
    model, make_batch, loss, optimizer = small_model.build()

    def of_one_size(batch_size: int, device: torch.device) -> Any:
        assert batch_size == FIXED, "no such batch"
        return make_batch(batch_size, device)

    return model, of_one_size, loss, optimizer


def request_of(batch_size: int) -> Request:
    spec = WorkloadSpec(f"{__name__}:build", device="cpu", batch_size=batch_size)
    return Request(spec, (), UseImpl("layer_norm", STAND_IN), 0.05, judge="numbers")


def test_a_model_of_one_batch_size_is_checked_on_its_own(stand_in: dict[str, int]) -> None:
    found = try_change(request_of(FIXED), lambda phase: None)
    assert found.refused is None and stand_in["layer_norm"]
    assert found.numbers[0] == "checked on the run's own batches, as there are none of 16"


def test_what_cannot_be_built_at_all_is_told() -> None:
    with pytest.raises(Exception, match="no such batch"):
        try_change(request_of(FIXED + 1), lambda phase: None)
