"""The GDPA block's forward for Hopper: its numbers, emulated, and which inputs it takes."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels.activations import activation_per_head
from mfu_kernels.examples import Inputs
from mfu_kernels.gdpa_block.examples import EXAMPLES
from mfu_kernels.gdpa_block.kernel import FORWARD, forward
from mfu_kernels.gdpa_block.kernel_sm90 import fits
from tests.kernels.gluon import contract

ROWS = ((5, 0, 65, 1), (0, 64, 0, 63), (0, 0), (129,), (257, 0, 193))
FACTORS = {"lengths": ROWS, "keys": (65, 100, 128, 130, 257), "heads": (3, 2, 1), "d": (64, 128)}


def run(inputs: Inputs, _: Tensor) -> dict[str, Tensor]:
    """The output, which is the same whether a backward follows or not."""
    heads = inputs.tensors["x"].shape[1]
    options = {
        **inputs.others,
        "activation": list(activation_per_head("gdpa_block", inputs.others["activation"], heads)),
    }
    out, _, _ = forward(**inputs.tensors, **options, eps=1e-5, save=True)
    alone, _, _ = forward(**inputs.tensors, **options, eps=1e-5, save=False)
    assert torch.equal(out, alone)
    return {"out": out}


@pytest.mark.parametrize("case", contract.cases(EXAMPLES, 4, **FACTORS), ids=str)
def test_its_numbers(case: Mapping[str, Any]) -> None:
    contract.check(EXAMPLES, case, FORWARD, "GROUPS", run)
