"""Weights that are cast together: autocast's numbers, with fewer launches, and only where the loop is ours."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mfu_models import MODELS
from mfubench.workload.casting import product_weights, with_cast_weights
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec
from mfubench.workload.step import run_passes


def workload(model: str, **more: Any) -> Workload:
    return prepare(WorkloadSpec(model, size="tiny", dtype="bf16", device="cpu", steps=1, batch_size=8, **more))


def loss_and_grads(workload: Workload) -> tuple[Tensor | None, dict[str, Tensor | None]]:
    _, loss = run_passes(workload, workload.inputs[0])
    grads = {name: weight.grad for name, weight in workload.module.named_parameters()}
    return loss, {name: None if g is None else g.to_dense() if g.is_sparse else g for name, g in grads.items()}


class Operators(TorchDispatchMode):
    """Counts what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_and_every_gradient_are_autocasts_to_the_bit(model: str) -> None:
    ours, plain = workload(model), workload(model)
    plain.may_be_compiled = True  # then the compiler sees autocast's own casts
    (loss, grads), (expected_loss, expected) = loss_and_grads(ours), loss_and_grads(plain)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=0)
    torch.testing.assert_close(grads, expected, rtol=0, atol=0)
    assert all(grad is None or grad.dtype == torch.float32 for grad in grads.values())


def test_a_step_casts_its_weights_once_each_way_and_leaves_the_parameters_where_they_were() -> None:
    counted = {}
    for compiled in (False, True):
        step = workload("kunlun")
        step.may_be_compiled = compiled
        before = dict(step.module.named_parameters())
        with Operators() as operators:
            run_passes(step, step.inputs[0])
        counted[compiled] = operators.calls
        assert all(weight is before[name] for name, weight in step.module.named_parameters())
    together, apart = counted[False], counted[True]
    assert together["aten._foreach_copy_.default"] == 2
    assert "aten._foreach_copy_.default" not in apart
    weights = len(product_weights(workload("kunlun").module))
    assert apart["aten._to_copy.default"] - together["aten._to_copy.default"] == 2 * weights


def test_only_what_products_take_is_cast_and_a_weight_without_a_gradient_gets_none() -> None:
    module = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
    seen: list[torch.dtype] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = module

        def forward(self, x: Tensor) -> Tensor:
            seen.extend([self.parts["used"].weight.dtype, self.parts["norm"].weight.dtype])
            result: Tensor = self.parts["norm"](self.parts["used"](x).float())
            return result

    model = Model()
    with torch.autocast("cpu", torch.bfloat16):
        with_cast_weights(model, torch.bfloat16)(torch.randn(4, 3)).sum().backward()
    assert seen == [torch.bfloat16, torch.float32]
    assert module["unused"].weight.grad is None and module["used"].weight.grad is not None


def test_other_dtypes_and_compiled_workloads_keep_their_own_weights() -> None:
    for more in ({"dtype": "fp32"}, {"dtype": "bf16", "compile": "model"}):
        step = prepare(WorkloadSpec("kunlun", size="tiny", device="cpu", steps=1, batch_size=4, **more))
        with Operators() as operators:
            run_passes(step, step.inputs[0])
        assert "aten._foreach_copy_.default" not in operators.calls
