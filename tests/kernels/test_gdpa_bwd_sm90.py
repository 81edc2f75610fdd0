"""GDPA's backward for Hopper: its numbers, emulated, whatever lies in other rows; which inputs it takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels.activations import activation_per_head
from mfu_kernels.examples import Inputs
from mfu_kernels.gdpa.examples import EXAMPLES
from mfu_kernels.gdpa.kernel_bwd import BACKWARD, backward, backward_into
from mfu_kernels.gdpa.kernel_bwd_sm90 import fits
from tests.kernels.gluon import contract, emulated

FACTORS = {
    "keys": (65, 100, 128, 130, 256),
    "d": (64, 128),
    "activation": ("gelu_tanh", "gelu", "silu", "relu2"),
    "needs q": (True, False),
}
CASES = contract.cases(EXAMPLES, 2, **FACTORS)
SHARED_OUT = {"lengths": (300,), "keys": 256, "heads": 1, "needs q": True, "dtype": "bf16", "choice": 0}


@pytest.mark.parametrize("case", [*CASES, *({**SHARED_OUT, "d": d} for d in (64, 128))], ids=str)
def test_its_numbers(case: Mapping[str, Any]) -> None:
    needs = [case["needs q"], True, True]

    def run(inputs: Inputs, weights: Tensor) -> dict[str, Tensor]:
        names = activation_per_head("gdpa", inputs.others["activation"], inputs.tensors["q"].shape[1])
        options = {**inputs.others, "activation": list(names), "needs": needs}
        grads = backward(weights.to(inputs.tensors["q"].dtype), **inputs.tensors, **options)
        return {name: x for name, x, needed in zip("qkv", grads, needs, strict=True) if needed}

    contract.check(EXAMPLES, case, BACKWARD, "STAGES", run)


@pytest.mark.parametrize("d", [64, 128])
def test_gradients_of_the_output_are_added_to_those_of_queries(d: int) -> None:
    rows = (200, 0, 70)
    q, grad = (torch.randn(sum(rows), 2, d).bfloat16() for _ in range(2))
    k, v = (
        torch.randn(len(rows), 256, 2, d).mul(0.1).bfloat16() for _ in range(2)
    )  # no gradient is far from the others
    found = []
    for adds in (False, True):
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        with emulated(BACKWARD, "STAGES") as taken:
            options = torch.tensor([0, *rows]).cumsum(0), 0.5, ["silu", "gelu"], max(rows), [True, True, True]
            backward_into(grads, grad, q, k, v, *options, adds=adds)
        assert taken
        found.append(grads)
    (dq, *others), (added, *same) = found
    torch.testing.assert_close(added.float(), dq.float() + grad.float(), rtol=2**-7, atol=0.02)
    assert all(torch.equal(x, y) for x, y in zip(others, same, strict=True))


def gradients(rows: Sequence[int], d: int, *, spoilt: bool) -> tuple[Tensor, ...]:
    """Those of 256 keys; events of the last row are NaN if ``spoilt``."""
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *rows]).cumsum(0)
    grad, q = (torch.randn(sum(rows), 1, d, generator=generator).bfloat16() for _ in range(2))
    k, v = (torch.randn(len(rows), 256, 1, d, generator=generator).bfloat16() for _ in range(2))
    for x in (grad, q) if spoilt else ():
        x[offsets[-2] :] = torch.nan
    with emulated(BACKWARD, "STAGES") as taken:
        found = backward(grad, q, k, v, offsets, 1.0, ["gelu_tanh"], max(rows), [True, True, True])
    assert taken
    return found


@pytest.mark.parametrize("d", [64, 128])
def test_what_lies_in_other_rows_does_not_matter(d: int) -> None:
    rows = (70, 5)
    (dq, *others), (dq_spoilt, *others_spoilt) = (gradients(rows, d, spoilt=spoilt) for spoilt in (False, True))
    assert torch.equal(dq[:70], dq_spoilt[:70])
    assert all(torch.equal(x[0], y[0]) for x, y in zip(others, others_spoilt, strict=True))


def test_gradients_of_keys_and_values_may_lie_side_by_side() -> None:
    q, k = torch.randn(70, 2, 64).bfloat16(), torch.randn(2, 256, 2, 64).bfloat16()
    found = (k.new_empty(k.shape), k.new_empty(k.shape)), k.new_empty(2, 256, 2, 2, 64).unbind(2)
    for dk, dv in found:
        grads = q.new_empty(0), dk, dv
        with emulated(BACKWARD, "STAGES") as taken:
            offsets = torch.tensor([0, 0, 70])
            backward_into(grads, q, q, k, k, offsets, 1.0, ["silu", "silu"], 70, [False, True, True])
        assert taken
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def tensors(d: int = 64, num_keys: int = 256, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    q, k = torch.empty(5, 4, d, dtype=dtype), torch.empty(2, num_keys, 4, d, dtype=dtype)
    return {"grad": q.clone(), "q": q, "k": k, "v": k.clone(), "needs": [True, True, True]}


def test_it_takes_dense_tensors_and_parts_of_wider_ones_with_or_without_dq() -> None:
    assert fits(**tensors()) and fits(**{**tensors(d=128, num_keys=65), "needs": [False, True, True]})
    assert fits(**{**tensors(), "grad": torch.empty(5, 3, 4, 64, dtype=torch.bfloat16)[:, 1]})


@pytest.mark.parametrize(
    "changed",
    [
        tensors(dtype=torch.float32),
        tensors(d=96),
        tensors(num_keys=257),
        tensors(num_keys=64),
        {"grad": torch.empty(5, 260, dtype=torch.bfloat16)[:, :256].unflatten(1, (4, 64))},
        {"needs": [True, False, True]},
        {"needs": [True, True, False]},
    ],
    ids=["fp32", "d", "many keys", "few keys", "odd stride", "no dk", "no dv"],
)
def test_what_it_does_not_take(changed: dict[str, Any]) -> None:
    assert not fits(**{**tensors(), **changed})
