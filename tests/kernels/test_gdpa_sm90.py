"""GDPA's forward for Hopper: its numbers, emulated; which inputs it takes; that a launch there takes code that fits."""

import json
import os
import subprocess
import sys
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

CODE = """
import json, sys, torch
from mfu_kernels import gdpa
from mfu_kernels.modes import compile_ahead
from mfubench.kernels.ahead import activate
from mfubench.kernels.machine_code import read_machine_code
from mfubench.kernels.targets import TARGETS

target = TARGETS[sys.argv[1]]
activate(target)
found, offsets = [], torch.empty(4, dtype=torch.int64, device="meta")
for d, num_keys, activation in json.loads(sys.argv[2]):
    q = torch.empty(1000, 2, d, dtype=torch.float16, device="meta")
    k = torch.empty(3, num_keys, 2, d, dtype=torch.float16, device="meta")
    with compile_ahead(found.append, lambda *_: "launched"):
        gdpa(q, k, torch.empty_like(k), offsets, scale=1.0, activation=activation, max_length=700, impl="triton")
codes = read_machine_code([compiled.result for compiled in found], target)
print(json.dumps([
    {"by warpgroups": "GROUPS" in compiled.config.kwargs, "tensor_core": code.tensor_core,
     "async_copy": code.async_copy, "spills": code.spill_bytes, "fits": code.shared_bytes <= target.block_shared}
    for compiled, code in zip(found, codes, strict=True)
]))
"""


def compiled(target: str, *cases: tuple[int, int, str]) -> list[dict[str, object]]:
    """What launches would take on ``target``, compiled in a process of their own, where Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", CODE, target, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_a_launch_on_hopper_takes_it() -> None:
    cases = [(128, 256, "gelu_tanh"), (64, 200, "gelu"), (128, 128, "silu"), (64, 100, "leaky_relu")]
    wanted = {"by warpgroups": True, "tensor_core": "wgmma", "async_copy": "tma", "spills": 0, "fits": True}
    assert compiled("sm_90", *cases) == [wanted] * len(cases)


def test_other_shapes_and_targets_take_the_plain_kernel() -> None:
    found = [*compiled("sm_90", (32, 99, "relu"), (64, 300, "relu")), *compiled("sm_80", (64, 99, "relu"))]
    assert [launch["by warpgroups"] for launch in found] == [False] * 3


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


@pytest.mark.parametrize("case", contract.cases(EXAMPLES, 4, keys=(65, 100, 128, 130, 256), d=(64, 128)), ids=str)
def test_its_numbers(case: Mapping[str, Any]) -> None:
    contract.check(EXAMPLES, case, FORWARD, "GROUPS", run)
