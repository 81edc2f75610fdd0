"""Where spans touch, overlap, overhang or share a number: on traces written by hand, and a real one."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfubench.attribute.attribution import UNOWNED, Attribution
from mfubench.attribute.join import attribute
from mfubench.measure.count import WorkKey
from mfubench.measure.scopes import BACKWARD, FORWARD, ROOT, Scope
from mfubench.measure.trace import STEP_PREFIX, trace_steps
from tests.mfubench.attribute.by_hand import STEP, Known, joined, kernel, launch, node, scope, span
from tests.mfubench.steps import training_step

MUL = WorkKey(UNOWNED, "fwd", "elementwise")
TWO_STEPS = [span(STEP, 100, 50, "user_annotation"), span(f"{STEP_PREFIX}1", 200, 60, "user_annotation")]


def test_what_runs_between_two_steps_is_of_neither() -> None:
    events = [*TWO_STEPS, *(span("aten::mul", start, 7) for start in (80, 110, 170, 210, 290))]
    found = joined(events, Known(owners={}), "cpu")
    assert found.busy == {MUL: 14} and (found.span, found.steps) == (110, 2)
    assert found.host == {(UNOWNED, "fwd"): 110 - 14}


def test_kernels_that_are_launched_between_two_steps_are_of_neither() -> None:
    launched = [(1, 110), (2, 170), (3, 210)]
    events = [*TWO_STEPS]
    for number, start in launched:
        events += [span("aten::mul", start, 7), launch(number, start + 1), kernel(number, start + 2, 4)]
    found = joined(events, Known(owners={}), "cuda")
    assert found.busy == {MUL: 8} and {name for _, name in found.kernels} == {"kernel_1", "kernel_3"}


def test_the_outermost_operator_says_what_class_the_work_is() -> None:
    """A fill inside a norm is the norm's."""
    inside = [span("aten::native_layer_norm", 12, 36), span("aten::empty", 14, 6)]
    events = [span(STEP, 0, 100, "user_annotation"), scope(0, "a", 5, 90), span("aten::layer_norm", 10, 40), *inside]
    found = joined(events, Known(Scope(0, "a"), owners={}), "cpu")
    assert found.busy == {WorkKey("a", "fwd", "norm"): 40}
    assert found.kernels == {
        (WorkKey("a", "fwd", "norm"), "aten::layer_norm"): [4, 1],
        (WorkKey("a", "fwd", "norm"), "aten::native_layer_norm"): [30, 1],
        (WorkKey("a", "fwd", "norm"), "aten::empty"): [6, 1],
    }


def test_a_child_that_overhangs_its_parent_takes_no_more_than_what_lies_inside() -> None:
    """By 5 us, as clocks are read: of the scope's 40 us the child has the last 20, and 5 more of its own."""
    events = [span(STEP, 0, 100, "user_annotation"), scope(0, "a", 10, 40), span("aten::mul", 30, 25)]
    found = joined(events, Known(Scope(0, "a"), owners={}), "cpu")
    assert found.host == {("a", "fwd"): 20, (UNOWNED, "fwd"): 60}
    assert found.busy == {WorkKey("a", "fwd", "elementwise"): 25}


def test_time_without_an_owner_is_what_no_module_has() -> None:
    """A phase as such owns nothing; what ranks say to each other has an owner."""
    found = Attribution()
    found.busy.update({WorkKey("a", "fwd", "gemm"): 50.0, WorkKey(FORWARD, "fwd", "copy"): 20.0})
    found.busy.update({WorkKey(BACKWARD, "bwd", "copy"): 6.0, WorkKey(UNOWNED, "fwd", "copy"): 4.0})
    found.host.update({(FORWARD, "fwd"): 3.0, (UNOWNED, "fwd"): 2.0, (ROOT, "fwd"): 5.0})
    found.communication["a", "fwd"] = 10.0
    assert found.attributed_share() == pytest.approx((50 + 5 + 10) / 100)


def test_a_node_that_is_made_again_is_the_last_operators_that_had_its_number() -> None:
    """An operator that makes no node, the last of a's, has the number of the next node, which is b's."""
    tracker = Known(Scope(0, BACKWARD), Scope(1, "a"), Scope(2, "b"), owners={1: 1, 2: 2, 50: 0})
    events = [
        *(span(STEP, 0, 100, "user_annotation"), scope(0, BACKWARD, 1, 98)),
        *(node("CheckpointBackward", 10, 20, 1), span("aten::gt", 15, 5, **{"Sequence number": 50})),
        *(node("CheckpointBackward", 30, 60, 2), span("aten::mm", 35, 5, **{"Sequence number": 50})),
        *(node("MmBackward0", 50, 30, 50), span("aten::mm", 55, 20)),
    ]
    found = joined(events, tracker, "cpu")
    assert found.busy == {WorkKey("a", "bwd", "elementwise"): 5, WorkKey("b", "bwd", "gemm"): 25}


class Part(nn.Module):
    """A product that the backward makes again, and beside it a comparison, which makes no node."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        def product(x: Tensor) -> Tensor:
            out = torch.mm(x, self.weight)
            self.positive = (out > 0).detach()
            return out

        out: Tensor = checkpoint(product, x, use_reentrant=True)
        return out


def test_parts_that_repeat_alike_have_as_many_products_each() -> None:
    """One more forward and two gradients."""
    model = nn.Sequential(Part(), Part())
    step = training_step(model, torch.randn(4, 8, requires_grad=True))
    trace = trace_steps(model, lambda tracker, _index: step(tracker), device=torch.device("cpu"), num_steps=1)
    found = attribute(trace, "cpu")
    products = {
        key.module: calls
        for (key, name), (_, calls) in found.kernels.items()
        if name == "aten::mm" and key.direction == "bwd"
    }
    assert products == {"0": 3, "1": 3}
