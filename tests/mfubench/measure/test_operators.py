"""The mode that sees every operator: what it must not do to the model that runs under it, and what it finds."""

from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mfubench.measure.operators import OperatorMode, operator_name, tensors_of


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


INDEXED: dict[str, Callable[[Tensor], Tensor]] = {
    "index_put": lambda x: x[torch.arange(4), torch.tensor([0, 2, 2, 1])],
    "index_add": lambda x: x.index_select(0, torch.tensor([0, 2, 2])),
    "scatter_add": lambda x: x.gather(1, torch.tensor([[0, 0], [1, 2], [0, 1], [2, 2]])),
    "scatter": lambda x: x.topk(2).values,
    "put": lambda x: x.take(torch.tensor([0, 5, 5])),
    "masked_scatter": lambda x: x.masked_select(torch.tensor([True, False, True])),
}


@pytest.mark.parametrize("name", INDEXED)
def test_the_backward_of_indexing_adds_in_place_as_it_does_unseen(name: str) -> None:
    gradients, ran = [], []
    for mode in (nullcontext(), OperatorMode(lambda func, args, kwargs, out: ran.append(operator_name(func)))):
        x = torch.arange(12.0).view(4, 3).requires_grad_()
        with mode:
            (INDEXED[name](x) ** 2).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    assert any(found in (f"aten::{name}_", f"aten::_{name}_impl_") for found in ran) and f"aten::{name}" not in ran
    assert "aten::clone" not in ran


def puts_into_zeros(x: Tensor) -> Tensor:
    """Needs its zeros again, once it has put numbers into them."""
    at, one = torch.tensor([1]), torch.ones(())
    zeros = torch.zeros(4)
    put = zeros.index_put((at,), one)
    return x * (put + 10 * zeros.index_put((at + 1,), one))


class PutsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return puts_into_zeros(grad)


@pytest.mark.parametrize(
    "step",
    [
        puts_into_zeros,
        PutsBackward.apply,
        lambda x: checkpoint(puts_into_zeros, x, use_reentrant=False),
        lambda x: checkpoint(puts_into_zeros, x, use_reentrant=True),
    ],
    ids=["forward", "backward", "repeated", "repeated, reentrant"],
)
def test_what_a_model_puts_into_its_own_zeros_is_a_copy(step: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(4, requires_grad=True)
    with OperatorMode(lambda func, args, kwargs, out: None):
        step(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 10, 0]
