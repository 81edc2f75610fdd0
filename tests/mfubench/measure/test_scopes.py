"""Whose work is running: modules, ops and phases as scopes, and the owner of an autograd node by its number."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfu_kernels import layer_norm, rms_norm
from mfu_kernels.cost import OpCost, PassCost, current_observer, observing, once_for_batch
from mfubench.measure.scopes import BACKWARD, LOSS, ROOT, ScopeTracker


def nodes(output: Tensor) -> Iterator[torch.autograd.graph.Node]:
    """Every node of the graph behind ``output``, its own first."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [outer for outer, _ in node.next_functions]


def owners(tracker: ScopeTracker, output: Tensor) -> dict[str, set[str | None]]:
    """Modules that own the nodes of the graph, by the node's kind without its number."""
    found: dict[str, set[str | None]] = {}
    for node in nodes(output):
        if node.name() != "torch::autograd::AccumulateGrad":
            scope = tracker.owner_of(node._sequence_nr())
            found.setdefault(node.name().rstrip("0123456789"), set()).add(scope.module if scope else None)
    return found


def modules_of(tracker: ScopeTracker, *, recompute: bool = False) -> list[str]:
    """Modules in the order in which their scopes opened."""
    return [scope.module for scope in tracker.scopes if scope.recompute == recompute]


def is_untouched(model: nn.Module) -> bool:
    """Whether no hook, and no record of one, is left on any module."""
    kept = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_backward_hooks")
    return not any(getattr(module, name) for module in model.modules() for name in kept)


class Returns(nn.Module):
    """Gives its linear map's result in whatever ``wrap`` makes of it."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.inner(x))


class Scorer(nn.Module):
    """Has a method beside forward, which its owner may call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def score(self, x: Tensor) -> Tensor:
        return x @ self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x)


class Outer(nn.Module):
    """Calls its inner module's method, then the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scorer()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.score(x).sin(), self.inner(x).cos()


class Fails(nn.Module):
    """Raises inside a nested module's forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Returns(self._raise)

    @staticmethod
    def _raise(x: Tensor) -> Tensor:
        raise KeyError("no such thing")

    def forward(self, x: Tensor) -> object:
        return self.inner(x)


class Checkpointed(nn.Module):
    """A block whose forward is repeated in the backward pass, behind a layer that is not."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)
        return out


def test_a_node_belongs_to_the_module_that_was_innermost() -> None:
    """A wrong owner here gives a module's backward time and FLOPs to its neighbour."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))
    x = torch.randn(2, 4)
    before = torch.randn(4, requires_grad=True).exp()
    tracker = ScopeTracker(model)
    with tracker.attached():
        output = model(x)
        with tracker.phase(LOSS):
            loss = output.square().mean()
    after = loss.tanh()
    found = owners(tracker, after)
    assert found["AddmmBackward"] == {"0", "2"} and found["SigmoidBackward"] == {"1"}
    assert found["PowBackward"] == found["MeanBackward"] == {LOSS}
    assert found["TanhBackward"] == {None} and owners(tracker, before) == {"ExpBackward": {None}}


def test_a_module_under_two_names_has_the_first() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    tracker = ScopeTracker(model)
    with tracker.attached():
        output = model(torch.randn(2, 4))
    assert modules_of(tracker) == [ROOT, "0", "1", "0"]
    assert owners(tracker, output)["AddmmBackward"] == {"0"}


def test_a_method_other_than_call_is_its_callers_work() -> None:
    model = Outer()
    tracker = ScopeTracker(model)
    with tracker.attached():
        called, whole = model(torch.randn(2, 4))
    assert modules_of(tracker) == [ROOT, "inner"]
    assert owners(tracker, called) == {"SinBackward": {ROOT}, "MmBackward": {ROOT}}
    assert owners(tracker, whole) == {"CosBackward": {ROOT}, "MmBackward": {"inner"}}


WRAPPED: dict[str, Callable[[Tensor], object]] = {"dict": lambda y: {"y": y}, "list": lambda y: [y, None]}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_what_a_module_returns_does_not_matter(wrap: Callable[[Tensor], object]) -> None:
    """Backward hooks would not fire for these outputs, which is why none are used."""
    model = Returns(wrap)
    tracker = ScopeTracker(model)
    with tracker.attached():
        output = model(torch.randn(2, 4))
    (tensor,) = (leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor))
    assert owners(tracker, tensor)["AddmmBackward"] == {"inner"} and tracker.current is None


def test_an_exception_leaves_no_scope_open() -> None:
    """A scope that stays open would swallow everything that runs after it."""
    model = Fails()
    tracker = ScopeTracker(model)
    with tracker.attached():
        for _ in range(2):
            with pytest.raises(KeyError), tracker.phase("(forward)"):
                model(torch.randn(2, 4))
            assert tracker.current is None
    assert modules_of(tracker) == ["(forward)", ROOT, "inner", "inner.inner"] * 2


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "early_stop"])
def test_what_checkpointing_repeats_is_marked(reentrant: bool) -> None:
    """Unmarked, a repeated forward would count as useful work, or stay open where early stop cuts it short."""
    model = Checkpointed(reentrant)
    tracker = ScopeTracker(model)
    with tracker.attached():
        loss = model(torch.randn(2, 4, requires_grad=True)).sum()
        with tracker.phase(BACKWARD):
            loss.backward()
        assert tracker.current is None
    assert modules_of(tracker) == [ROOT, "first", "block", "block.0", "block.1", "block.2", BACKWARD]
    assert modules_of(tracker, recompute=True) == ["block", "block.0", "block.1", "block.2"]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_nodes_that_a_reentrant_checkpoint_makes_again_have_an_owner(device: str) -> None:
    """Their numbers are handed out during the backward pass; unmarked they would belong to the phase."""
    model = Checkpointed(reentrant=True).to(device)
    tracker = ScopeTracker(model)
    seen: dict[str, set[str | None]] = {}

    def look(module: nn.Module, args: object, output: Tensor) -> None:
        if output.requires_grad and torch._C._current_autograd_node() is not None:
            seen.update(owners(tracker, output))

    handle = model.block.register_forward_hook(look)
    with tracker.attached(), tracker.phase(BACKWARD):
        model(torch.randn(2, 4, device=device)).sum().backward()
    handle.remove()
    assert seen["AddmmBackward"] == {"block.0", "block.2"} and seen["SigmoidBackward"] == {"block.1"}


def test_the_backward_pass_runs_in_the_steps_thread() -> None:
    """On a GPU it has one of its own otherwise, which numbers anew the nodes that it makes."""
    tracker = ScopeTracker(nn.Identity())
    one_thread = []
    with tracker.attached():
        one_thread.append(not torch._C._is_multithreading_enabled())
    with pytest.raises(KeyError), tracker.attached():
        raise KeyError
    assert one_thread == [True] and torch._C._is_multithreading_enabled()


def test_nothing_is_left_on_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Fails())
    tracker = ScopeTracker(model)
    with pytest.raises(KeyError), tracker.attached():
        assert not is_untouched(model) and current_observer() is tracker
        model(torch.randn(2, 4))
    assert is_untouched(model) and current_observer() is None
    num_scopes = len(tracker.scopes)
    model[0](torch.randn(2, 4))
    assert len(tracker.scopes) == num_scopes


def test_passes_are_not_nested() -> None:
    """Two passes at once would each see the other's work as the model's."""
    model = nn.Linear(4, 4)
    outer, inner = ScopeTracker(model), ScopeTracker(model)
    with outer.attached():
        with pytest.raises(RuntimeError, match="must not be nested"), inner.attached():
            raise AssertionError("a second pass began")
        model(torch.randn(2, 4))
        assert current_observer() is outer
    assert modules_of(outer) == [ROOT] and not inner.scopes and is_untouched(model)


class Ops(nn.Module):
    """An op, and an op inside an op; the batch's samples share the last."""

    def forward(self, x: Tensor) -> Tensor:
        return once_for_batch(rms_norm, layer_norm(x, impl="reference"), num_samples=7)


def test_an_op_is_a_scope_of_the_module_that_calls_it() -> None:
    model = nn.Sequential(Ops())
    tracker = ScopeTracker(model, with_costs=True)
    with tracker.attached():
        output = model(torch.randn(2, 4, requires_grad=True))
    found = [(scope.module, scope.op, scope.kind, scope.impl, scope.shared) for scope in tracker.scopes]
    assert found == [
        (ROOT, None, None, None, 1),
        ("0", None, None, None, 1),
        ("0", "layer_norm", "norm", "reference", 1),
        ("0", None, None, None, 7),
        ("0", "rms_norm", "norm", "reference", 7),
    ]
    costs = [scope.cost for scope in tracker.scopes]
    assert costs[:2] == [None, None] and costs[3] is None
    assert all(cost is not None and cost.fwd.bytes > 0 for cost in (costs[2], costs[4]))
    assert tracker.owner_of(output.grad_fn._sequence_nr()) is tracker.scopes[4]


def test_an_op_inside_an_op_is_the_outer_ones_implementation() -> None:
    """Its own cost would count the work twice: it is in the outer one's formula."""
    tracker = ScopeTracker(nn.Identity(), with_costs=True)
    tracker.enter_op("outer", "attention", "reference", lambda: OpCost(PassCost(model=1), PassCost()))
    tracker.enter_op("inner", "norm", "triton", lambda: OpCost(PassCost(model=2), PassCost()))
    tracker.exit_op()
    tracker.exit_op()
    (outer,) = tracker.scopes
    assert (outer.op, outer.kind, outer.impl) == ("outer", "attention", "reference") and tracker.current is None
    assert outer.cost == OpCost(PassCost(model=1), PassCost())


def test_costs_are_not_computed_where_nobody_counts() -> None:
    """A cost reads sequence lengths, which waits for the device; a trace must not."""
    tracker = ScopeTracker(nn.Identity())

    def cost() -> OpCost:
        raise AssertionError("computed")

    tracker.enter_op("op", "gemm", "reference", cost)
    tracker.exit_op()
    assert tracker.scopes[0].cost is None


def test_a_scope_outside_every_module_belongs_to_the_root() -> None:
    tracker = ScopeTracker(nn.Identity())
    context: AbstractContextManager[None] = observing(tracker)
    with context:
        once_for_batch(rms_norm, torch.randn(2, 4), num_samples=3)
    assert [scope.module for scope in tracker.scopes] == [ROOT, ROOT]
