"""What is executed and of no use to a sample: an optimizer's products, and results that nobody asked for."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfu_kernels.cost import OpCost, PassCost
from mfu_kernels.registry import Op
from mfubench.measure.count import Count, Work, count_step
from mfubench.measure.scopes import BACKWARD, OPTIMIZER, ScopeTracker

N, WIDTH = 5, 4
PRODUCT = 2 * N * WIDTH * WIDTH
ROWS, STEPS, FEATURES, STATES = 3, 6, 4, 5
GATES = 4  # of an LSTM


def trained(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer | None = None) -> Count:
    def step(tracker: ScopeTracker) -> None:
        output = model(x)
        with tracker.phase(BACKWARD):
            (output[0] if isinstance(output, tuple) else output).sum().backward()
        if optimizer is not None:
            with tracker.phase(OPTIMIZER):
                optimizer.step()

    return count_step(model, step)


def of_the_optimizer(count: Count) -> Work:
    total = Work()
    for key, work in count.work.items():
        if key.module == OPTIMIZER:
            total.add(work)
    return total


def test_an_optimizers_products_are_hardware_work_alone() -> None:
    """Muon's five rounds make a square of the gradient, its square, and a product with the gradient, in bf16."""
    model, x = nn.Linear(WIDTH, WIDTH, bias=False), torch.randn(N, WIDTH)
    count = trained(model, x, torch.optim.Muon(model.parameters(), ns_steps=5))
    update, total = of_the_optimizer(count), count.total()
    assert (update.model, update.padded, update.hardware) == (0, 0, 5 * 3 * 2 * WIDTH**3)
    assert update.bytes > 0 and update.dtypes == {"bfloat16": update.hardware}
    assert total.model == total.padded == 2 * PRODUCT and total.hardware == 2 * PRODUCT + update.hardware
    assert count.total("fwd").model == PRODUCT


def test_an_optimizers_choice_of_type_is_not_the_models() -> None:
    model = nn.Linear(WIDTH, WIDTH, bias=False)
    count = trained(model, torch.randn(N, WIDTH), torch.optim.Muon(model.parameters()))
    assert count.dtypes() == {"float32": 2 * PRODUCT}
    assert count.total().dtypes["bfloat16"] > count.dtypes()["float32"]


class Whitening(torch.optim.SGD):
    """Its update is an op with a formula of its own, as a kernel of ours is."""

    OP = Op(
        "toy",
        "gemm",
        lambda x, y, *, impl: OpCost(PassCost(7, 8, 9, 10), PassCost()),
        {"reference": torch.matmul, "triton": torch.matmul},
    )

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.OP.run("triton", parameter.device, parameter, parameter)


def test_an_op_of_an_optimizer_is_hardware_work_alone() -> None:
    model = nn.Linear(WIDTH, WIDTH, bias=False)
    update = of_the_optimizer(trained(model, torch.randn(N, WIDTH), Whitening(model.parameters())))
    assert (update.model, update.padded, update.hardware, update.bytes) == (0, 0, 9, 10)


@pytest.mark.parametrize("learned", [True, False], ids=["rows want a gradient", "rows want none"])
def test_a_gradient_that_nobody_asked_for_is_no_padding(learned: bool) -> None:
    """A LSTM's one operator makes the gradient of the states before the first step, and of the rows, come what may."""
    model = nn.LSTM(FEATURES, STATES, batch_first=True)
    x = torch.randn(ROWS, STEPS, FEATURES).requires_grad_(learned)
    count = trained(model, x)
    of_rows, of_states = 2 * GATES * STATES * ROWS * FEATURES * STEPS, 2 * GATES * STATES * ROWS * STATES
    unwanted = of_states + (0 if learned else of_rows)
    total, forward = count.total(), of_rows + of_states * STEPS
    assert total.unwanted == unwanted and total.recomputed == 0
    assert total.hardware == 3 * forward
    assert total.model == total.padded == 3 * forward - unwanted


def test_repeated_work_is_not_unwanted_too() -> None:
    """Or it would be taken off twice."""
    model = nn.LSTM(FEATURES, STATES, batch_first=True)
    x = torch.randn(ROWS, STEPS, FEATURES).requires_grad_()
    repeated = trained(Checkpointed(model), x).total()
    plain = trained(model, x).total()
    assert repeated.recomputed > 0 and repeated.unwanted == plain.unwanted > 0
    assert repeated.padded == plain.padded == repeated.hardware - repeated.recomputed - repeated.unwanted


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(lambda rows: self.inner(rows)[0], x, use_reentrant=True)
        return out
