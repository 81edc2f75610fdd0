"""The trace pass: which steps are recorded, and what they are given."""

import torch
from torch import nn

from mfubench.measure.scopes import ScopeTracker
from mfubench.measure.trace import trace_steps


def test_traced_steps_take_the_input_sets_in_turn_after_one_that_is_not_recorded() -> None:
    """A step that always gets 0 would find its inputs in a cache."""
    model, x, ran = nn.Linear(4, 4), torch.randn(2, 4), list[int]()

    def step(_tracker: ScopeTracker, index: int) -> None:
        ran.append(index)
        model(x)

    trace = trace_steps(model, step, device=torch.device("cpu"), num_steps=3)
    assert ran == [0, 0, 1, 2]
    assert sum(event.get("name") == "aten::linear" for event in trace.events) == 3
