"""What a node of the backward pass runs again where no module is called: by whom, how often, and when it is none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfubench.attribute.attribution import NOBODYS
from mfubench.attribute.join import attribute
from mfubench.measure.count import Count, count_step
from mfubench.measure.scopes import BACKWARD, LOSS, ROOT, ScopeTracker
from mfubench.measure.trace import trace_steps
from tests.mfubench.steps import Product, training_step

N, WIDTH, LAYERS = 8, 32, 2
PRODUCT = 2 * N * WIDTH * WIDTH  # of N rows and a square matrix


class Remade(torch.autograd.Function):
    """Two products, the first of which its backward makes again, as fused kernels that save memory do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(x, first, second)
        return (x @ first).relu() @ second

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        given = tuple(tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            output = (given[0] @ given[1]).relu() @ given[2]
        return torch.autograd.grad(output, given, gradient)


def twice(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return (x @ first).relu() @ second


Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
LAYER: dict[str, tuple[Layer, int]] = {  # and how many of its two products are made again
    "plain": (twice, 0),
    "checkpoint": (lambda *given: checkpoint(twice, *given, use_reentrant=False), 1),  # stops at what is needed
    "reentrant": (lambda *given: checkpoint(twice, *given, use_reentrant=True), 2),
    "function": (Remade.apply, 2),  # type: ignore[dict-item]
}


class Stack(nn.Module):
    """Layers of bare parameters, all of them the model's own work."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.weights = nn.ParameterList(torch.randn(WIDTH, WIDTH) / WIDTH for _ in range(2 * LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for at in range(0, 2 * LAYERS, 2):
            x = self.layer(x, self.weights[at], self.weights[at + 1])
        return x


def stack(name: str) -> tuple[Stack, Callable[[ScopeTracker], None]]:
    model = Stack(LAYER[name][0])
    return model, training_step(model, torch.randn(N, WIDTH, requires_grad=True))


def flops_of(counted: Count, module: str, direction: str, name: str) -> int:
    return sum(
        getattr(work, name) for key, work in counted.work.items() if (key.module, key.direction) == (module, direction)
    )


@pytest.mark.parametrize("name", LAYER)
def test_a_repeated_function_is_hardware_work_of_the_module_that_called_it(name: str) -> None:
    counted = count_step(*stack(name))
    products = 2 * LAYERS
    assert flops_of(counted, ROOT, "fwd", "model") == products * PRODUCT
    assert flops_of(counted, ROOT, "bwd", "model") == 2 * products * PRODUCT
    assert flops_of(counted, ROOT, "recompute", "hardware") == LAYERS * LAYER[name][1] * PRODUCT
    assert counted.total().model == 3 * products * PRODUCT, "nothing is anybody else's"
    assert counted.total().recomputed == LAYERS * LAYER[name][1] * PRODUCT


@pytest.mark.parametrize("name", LAYER)
def test_its_time_is_that_modules_too(name: str) -> None:
    model, step = stack(name)
    trace = trace_steps(model, lambda tracker, index: step(tracker), device=torch.device("cpu"), num_steps=2)
    found = attribute(trace, "cpu")
    products = {key.module for key in found.busy if key.kind == "gemm" and key.direction == "bwd"}
    assert products == {ROOT} and not products & set(NOBODYS)
    assert not any(key.module == BACKWARD and key.kind in ("gemm", "elementwise") for key in found.busy)


@pytest.mark.parametrize("own", [True, False])
def test_gradients_of_gradients_repeat_nothing(own: bool) -> None:
    """A penalty on the gradient of the input: y = relu(x A) B, g = dy/dx, and the backward of both."""
    model = nn.ParameterList(torch.randn(WIDTH, WIDTH) / WIDTH for _ in range(2))
    x = torch.randn(N, WIDTH, requires_grad=True)
    product: Callable[[Tensor, Tensor], Tensor] = Product.apply if own else torch.matmul  # type: ignore[assignment]

    def step(tracker: ScopeTracker) -> None:
        with tracker.phase(LOSS):
            y = product(x, model[0]).relu() @ model[1]
            (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            loss = y.sum() + gradient.square().sum()
        with tracker.phase(BACKWARD):
            loss.backward()

    counted = count_step(model, step)
    assert counted.total().recomputed == 0
    first, gradient, second = 2, 2 + own, 3  # its own backward makes A's gradient, too, which nobody asks for
    assert counted.total().model == (first + gradient + second + 4) * PRODUCT
