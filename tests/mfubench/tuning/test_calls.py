"""Recorded calls are what the step launched: the same kernels at the same keys, on tensors of the same layout."""

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfu_kernels import layer_norm, window_attention_qkvpacked
from mfu_kernels.examples import Draw, Examples
from mfu_kernels.lock import key_text
from mfu_kernels.modes import MetaParameters, compile_ahead, watching_launches
from mfu_kernels.precision import autocast_on_meta, matmul_dtype
from mfubench.campaign.tasks import with_kernels
from mfubench.kernels.catalog import ops_with_kernels
from mfubench.tuning.calls import (
    Call,
    Floats,
    Whole,
    calls_without_numbers,
    distinct,
    examples_of_calls,
    recording,
)
from mfubench.workload.ahead import step_without_numbers
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WorkloadSpec
from mfubench.workload.step import run_passes

CPU, META = torch.device("cpu"), torch.device("meta")
KERNELS = with_kernels(ops_with_kernels())
Launches = set[tuple[str, str]]


def call_again(examples: Examples, title: str, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """The outputs and gradients of a call that is made again."""
    inputs = examples.make(examples.shapes[title], Draw(dtype, device))
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}
    out = examples.function(**leaves, **inputs.others, impl="triton")
    outputs = [out] if isinstance(out, Tensor) else list(out)
    if not leaves:
        return outputs
    return [*outputs, *torch.autograd.grad(outputs, list(leaves.values()), [torch.ones_like(o) for o in outputs])]


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_calls_made_again_launch_what_the_step_launched(mode: str) -> None:
    """With numbers, in the interpreter; they come back from another process as they went."""
    spec = WorkloadSpec(
        model="kunlun", size="tiny", batch_size=3, impl=KERNELS, device="cpu", steps=1, dtype="fp32", mode=mode
    )
    workload, launched, again = prepare(spec), set(), set()
    with recording(workload.module) as calls, watching_launches(lambda kernel, key, *_: launched.add((kernel, key))):
        run_passes(workload, workload.inputs[0])
    examples = examples_of_calls(pickle.loads(pickle.dumps(distinct(calls))))
    with watching_launches(lambda kernel, key, *_: again.add((kernel, key))):
        for title in examples.shapes:
            assert all(tensor.isfinite().all() for tensor in call_again(examples, title, CPU, torch.float32))
    assert again == launched and len(launched) > 10
    assert all(not isinstance(value, Tensor) for call in calls for value in call.others.values())


def noted(launches: Launches) -> Any:
    """Compiles nothing, and notes what would be launched."""

    def wanted(kernel: str, key: MetaParameters) -> Any:
        launches.add((kernel, key_text(key)))
        return "none"

    return compile_ahead(lambda compiled: None, wanted)


@pytest.mark.parametrize(("model", "size"), [("kunlun", "large_plus"), ("interformer", "large"), ("hstu", "large")])
def test_without_numbers_under_autocast_too(model: str, size: str) -> None:
    """At real sizes in bf16, on tensors that have no memory, as what is tuned is compiled."""
    step: Launches = set()
    again: Launches = set()
    spec = WorkloadSpec(model=model, size=size, batch_size=8)
    with noted(step):
        step_without_numbers(replace(spec, steps=1))
    calls = calls_without_numbers(spec)
    examples = examples_of_calls(calls)
    with noted(again):
        for title in examples.shapes:
            call_again(examples, title, META, torch.bfloat16)
    assert again == step and {call.autocast for call in calls} == {torch.bfloat16}
    whole = [tensor for call in calls for tensor in call.tensors.values() if isinstance(tensor, Whole)]
    assert all(tensor.values.any() for tensor in whole)  # with offsets of zeros no row would have an event


class Packed(nn.Module):
    """Attention of one packed tensor that lies askew in a larger one, of constants and of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((16,), 3.0))
        self.register_buffer("offsets", torch.tensor([0, 2, 5]))

    def forward(self, x: Tensor) -> Tensor:
        out = window_attention_qkvpacked(x[:, :, :, 1:9], self.offsets, window=2, max_length=3, impl="triton")
        return layer_norm(out.flatten(1), self.weight, impl="triton") + layer_norm(out.detach().flatten(1))


def recorded(x: Tensor) -> list[Call]:
    with recording(model := Packed()) as calls:
        model(x)
    return calls


def test_layouts_views_gradients_and_moments_are_kept() -> None:
    attention, norm = recorded(torch.full((5, 3, 2, 10), 2.0).requires_grad_())  # the last has no kernel: a reference
    packed, q, k = (attention.tensors[name] for name in ("packed", "arg0", "arg1"))
    assert isinstance(packed, Floats) and isinstance(q, Floats) and isinstance(k, Floats)
    assert (packed.shape, packed.stride, packed.offset) == ((5, 3, 2, 8), (60, 20, 10, 1), 1)
    assert (packed.mean, packed.std, packed.needs_grad, packed.part_of) == (2.0, 0.0, True, None)
    assert (k.part_of, k.offset, k.shape, k.stride) == ("packed", 20, (5, 2, 8), (60, 10, 1)) and q.offset == 0
    assert isinstance(offsets := attention.tensors["arg3"], Whole) and offsets.values.tolist() == [0, 2, 5]
    assert attention.others == {"arg4": None, "scale": 8**-0.5, "window": 2, "causal": False, "max_length": 3}
    assert (attention.title, norm.title) == ("(model) (window_attention)", "(model) (layer_norm)")
    inputs = examples_of_calls([attention]).make({"call": attention}, Draw(torch.float32, CPU))
    drawn = inputs.tensors["packed"]
    assert (drawn.stride(), drawn.storage_offset(), drawn.unique().tolist()) == (packed.stride, 1, [2.0])
    (weight,) = (tensor for tensor in norm.tensors.values() if tensor.layout()[0] == (16,))
    assert isinstance(weight, Floats) and weight.mean == 3.0


def test_what_is_not_finite_or_has_no_rows_is_drawn_normally() -> None:
    packed = recorded(torch.full((5, 3, 2, 10), float("nan")))[0].tensors["packed"]
    assert isinstance(packed, Floats) and (packed.mean, packed.std, packed.needs_grad) == (0.0, 1.0, False)
    empty = replace(packed, shape=(0, 3, 2, 8))
    assert empty.draw(Draw(torch.float32, CPU)).shape == (0, 3, 2, 8)


def test_one_call_of_each_kind_the_largest_first() -> None:
    small, large = recorded(torch.randn(5, 3, 2, 10)), recorded(torch.randn(5, 3, 2, 10).requires_grad_())
    longer = [replace(call, tensors={**call.tensors, "more": Floats((999,), (1,), 0, torch.float32, False, 0, 1)})
              for call in small[:1]]  # fmt: skip
    found = distinct([*small, *small, *large, *longer])
    assert [call.title for call in found[:2]] == ["(model) (window_attention)", "(model) #2 (window_attention)"]
    assert "more" in found[0].tensors and len(found) == 5
    assert len({call.title for call in found}) == 5


def test_a_call_inside_an_op_is_that_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    from mfu_kernels.registry import Op
    from mfu_kernels.rms_norm.cost import rms_norm_cost

    def outer(x: Tensor, weight: Tensor | None, *, eps: float) -> Tensor:
        return layer_norm(x, impl="triton")

    op = Op("outer", "norm", rms_norm_cost, {"triton": outer}, proved_natively=True)

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return op.run("triton", x.device, x, None, eps=1e-5)

    with recording(model := Model()) as calls:
        model(torch.randn(3, 8))
    assert [call.op for call in calls] == ["outer"]


def test_autocast_reaches_meta_where_it_is_said() -> None:
    x = torch.empty(2, device="meta")
    with autocast_on_meta(torch.bfloat16):
        assert matmul_dtype(x) == torch.bfloat16 and matmul_dtype(x.double()) == torch.float64
        with autocast_on_meta(None):
            assert matmul_dtype(x) == torch.float32
    assert matmul_dtype(x) == torch.float32
