"""The mode that sees every operator: what it must not do to the model that runs under it, and what it finds."""

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from mfubench.measure.operators import OperatorMode, tensors_of


def test_what_cannot_be_told_is_not_taken_for_an_operator_that_is_not_there() -> None:
    """Tensor subclasses catch a NotImplementedError, then try something else or report the operator itself."""

    def seen(func: Any, *_call: Any) -> None:
        raise NotImplementedError("no shape")

    x = torch.randn(3)
    with pytest.raises(RuntimeError, match=r"^aten::sin ran, and what it did cannot be told: no shape$") as error:  # noqa: SIM117
        with OperatorMode(seen):
            x.sin()
    assert not isinstance(error.value, NotImplementedError)


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Held:
    first: Any
    then: Any


def test_tensors_are_found_in_whatever_holds_them() -> None:
    """In the order that they come; nothing else is taken for one."""
    one, two, three, four = (torch.tensor(float(i)) for i in range(4))
    tree = [(one, 3, None, [two]), {"key": three, "more": OrderedDict(last=four)}, torch.float32, {1}]
    assert list(map(id, tensors_of(tree))) == [id(tensor) for tensor in (one, two, three, four)]
    held = Held(Pair(one, "a"), [Held(two, deque([three])), Held, four])
    assert list(map(id, tensors_of(held))) == [id(tensor) for tensor in (one, two, three, four)]
