"""GDPA's forward for Hopper: its numbers, emulated; which inputs it takes; that a launch there takes code that fits."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels.activations import activation_per_head
from mfu_kernels.examples import Inputs
from mfu_kernels.gdpa.examples import EXAMPLES
from mfu_kernels.gdpa.kernel import FORWARD, forward
from mfu_kernels.gdpa.kernel_sm90 import fits
from tests.kernels.gluon import contract
from tests.kernels.gluon.compiled import GOOD, compiled

LAUNCH = """
def launch(offsets, d, num_keys, activation):
    from mfu_kernels import gdpa
    q = torch.empty(1000, 2, d, dtype=torch.float16, device="meta")
    k = torch.empty(3, num_keys, 2, d, dtype=torch.float16, device="meta")
    gdpa(q, k, torch.empty_like(k), offsets, scale=1.0, activation=activation, max_length=700, impl="triton")
"""


def test_a_launch_on_hopper_takes_it_where_it_fits() -> None:
    its = [(128, 256, "gelu_tanh"), (64, 200, "gelu"), (128, 128, "silu"), (64, 100, "leaky_relu")]
    found = compiled("sm_90", LAUNCH, [*its, (32, 99, "relu"), (64, 300, "relu")])
    assert ["GROUPS" in launch["config"] for launch in found] == [True] * 4 + [False] * 2
    assert [launch["code"] for launch in found[:4]] == [GOOD] * 4


def test_other_targets_take_the_plain_kernel() -> None:
    (launch,) = compiled("sm_80", LAUNCH, [(64, 99, "relu")])
    assert "GROUPS" not in launch["config"]


def tensors(d: int = 64, num_keys: int = 256, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    k = torch.empty(2, num_keys, 4, d, dtype=dtype)
    return {"q": torch.empty(5, 4, d, dtype=dtype), "k": k, "v": k.clone()}


def test_it_takes_dense_tensors_and_parts_of_wider_ones() -> None:
    assert fits(**tensors()) and fits(**tensors(d=128, num_keys=65, dtype=torch.float16))
    assert fits(**{**tensors(), "q": torch.empty(5, 3, 4, 64, dtype=torch.bfloat16)[:, 1]})


@pytest.mark.parametrize(
    "changed",
    [
        tensors(dtype=torch.float32),
        tensors(d=96),
        tensors(num_keys=257),
        tensors(num_keys=64),
        {"q": torch.empty(5 * 256 + 1, dtype=torch.bfloat16)[1:].view(5, 4, 64)},
        {"q": torch.empty(5, 260, dtype=torch.bfloat16)[:, :256].unflatten(1, (4, 64))},
        {"k": torch.empty(2, 4, 256, 64, dtype=torch.bfloat16).transpose(1, 2)},
        {"v": torch.empty(1, 256, 4, 64, dtype=torch.bfloat16).expand(2, -1, -1, -1)},
    ],
    ids=["fp32", "d", "many keys", "few keys", "unaligned", "odd stride", "heads outside", "shared by rows"],
)
def test_what_tma_or_shared_memory_cannot_hold_is_not_for_it(changed: dict[str, Tensor]) -> None:
    assert not fits(**{**tensors(), **changed})


def run(inputs: Inputs, weights: Tensor) -> dict[str, Tensor]:
    names = activation_per_head("gdpa", inputs.others["activation"], inputs.tensors["q"].shape[1])
    return {"out": forward(**inputs.tensors, **{**inputs.others, "activation": list(names)})}


FACTORS = {"keys": (65, 100, 128, 130, 256), "d": (64, 128), "activation": ("gelu_tanh", "silu", "relu2")}


@pytest.mark.parametrize("case", contract.cases(EXAMPLES, 4, **FACTORS), ids=str)
def test_its_numbers(case: Mapping[str, Any]) -> None:
    contract.check(EXAMPLES, case, FORWARD, "GROUPS", run)
