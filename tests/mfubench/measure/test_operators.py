"""The mode that sees every operator: what it must not do to the model that runs under it."""

from typing import Any

import pytest
import torch

from mfubench.measure.operators import OperatorMode


def test_what_cannot_be_told_is_not_taken_for_an_operator_that_is_not_there() -> None:
    """Tensor subclasses catch a NotImplementedError, then try something else or report the operator itself."""

    def seen(func: Any, *_call: Any) -> None:
        raise NotImplementedError("no shape")

    x = torch.randn(3)
    with pytest.raises(RuntimeError, match=r"^aten::sin ran, and what it did cannot be told: no shape$") as error:  # noqa: SIM117
        with OperatorMode(seen):
            x.sin()
    assert not isinstance(error.value, NotImplementedError)
