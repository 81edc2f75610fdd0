"""The GDPA block's forward for Hopper: its numbers, emulated, and which inputs it takes."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_kernels.activations import activation_per_head
from mfu_kernels.examples import Draw, Inputs
from mfu_kernels.gdpa.reference import gdpa_reference
from mfu_kernels.gdpa_block.examples import EXAMPLES
from mfu_kernels.gdpa_block.kernel import FORWARD, forward
from mfu_kernels.gdpa_block.kernel_sm90 import arguments, configs, fits
from tests.kernels.gluon import contract, emulated
from tests.kernels.gluon.compiled import GOOD, compiled

ROWS = ((5, 0, 65, 1), (0, 64, 0, 63), (0, 0), (129,), (257, 0, 193))
FACTORS = {"lengths": ROWS, "keys": (65, 100, 128, 130, 257), "heads": (3, 2, 1), "d": (64, 128)}
LAUNCH = """
def launch(offsets, heads, d):
    from mfu_kernels.gdpa_block.kernel import forward
    x = torch.empty(1000, heads, d, dtype=torch.bfloat16, device="meta")
    k = torch.empty(3, 256, heads, d, dtype=torch.bfloat16, device="meta")
    forward(x, k, k, offsets, ["gelu_tanh"] * heads, 1.0, 1e-5, 700, True)
"""


def block(inputs: Inputs, save: bool) -> tuple[Tensor, ...]:
    names = activation_per_head("gdpa_block", inputs.others["activation"], inputs.tensors["x"].shape[1])
    return forward(**inputs.tensors, **{**inputs.others, "activation": list(names)}, eps=1e-5, save=save)


def run(inputs: Inputs, weights: Tensor) -> dict[str, Tensor]:
    return {"out": block(inputs, save=False)[0]}


@pytest.mark.parametrize("case", contract.cases(EXAMPLES, 3, **FACTORS), ids=str)
def test_its_numbers(case: Mapping[str, Any]) -> None:
    contract.check(EXAMPLES, case, FORWARD, "GROUPS", run)


@pytest.mark.parametrize("d", [64, 128])
def test_what_a_backward_needs(d: int) -> None:
    case = {"lengths": (65, 0, 193), "keys": 100, "heads": 2, "d": d, "mean": 1.0, "activation": "mixed"}
    inputs = EXAMPLES.make(case, Draw(torch.float16, torch.device("cpu"), seed=0))
    with emulated(FORWARD, "GROUPS"):
        (out, normed, inner, statistics), (alone, *nothing) = block(inputs, True), block(inputs, False)
    assert torch.equal(out, alone) and not any(x.numel() for x in nothing)
    x, k, v = (inputs.tensors[name].double() for name in "xkv")
    events = x.flatten(1)
    std, mean = (events.var(1, correction=0) + 1e-5).sqrt(), events.mean(1)
    n = ((events - mean[:, None]) / std[:, None]).view_as(x)
    torch.testing.assert_close(normed.double(), n, rtol=1e-3, atol=1e-4)
    options = {name: inputs.others[name] for name in ("offsets", "scale", "max_length")}
    o = gdpa_reference(n, k, v, activation=inputs.others["activation"], **options) + n
    torch.testing.assert_close(inner.double(), o, rtol=2e-3, atol=2e-2)
    rms = (o.flatten(1).square().mean(1) + 1e-5).sqrt()
    torch.testing.assert_close(statistics.double(), torch.stack([1 / rms, 1 / std]), rtol=1e-3, atol=1e-4)


def test_few_rows_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"lengths": (300, 70), "keys": 65, "heads": 1, "d": 64}
    inputs = EXAMPLES.make(case, Draw(torch.bfloat16, torch.device("cpu"), seed=0))
    with emulated(FORWARD, "GROUPS", choice=1):
        whole = block(inputs, save=False)[0]
        monkeypatch.setitem(arguments.__globals__, "num_splits", lambda *_: 3)
        assert torch.equal(block(inputs, save=False)[0], whole)


def test_its_code_fits_and_spills_nothing() -> None:
    found = compiled("sm_90", LAUNCH, [(6, 64), (4, 128)], form="GROUPS")
    assert [launch["code"] for launch in found] == [GOOD] * 2


def tensors(d: int = 64, num_keys: int = 256, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    k = torch.empty(2, num_keys, 4, d, dtype=dtype)
    return {"x": torch.empty(5, 4, d, dtype=dtype), "k": k, "v": k.clone()}


def test_it_takes_dense_tensors_and_parts_of_wider_ones() -> None:
    assert fits(**tensors()) and fits(**tensors(d=128, num_keys=65, dtype=torch.float16))
    assert fits(**{**tensors(), "x": torch.empty(5, 3, 4, 64, dtype=torch.bfloat16)[:, 1]})


@pytest.mark.parametrize(
    "changed",
    [
        tensors(dtype=torch.float32),
        {"x": torch.empty(5, 4, 64)},
        tensors(d=96),
        tensors(num_keys=513),
        tensors(num_keys=64),
        {"x": torch.empty(5 * 256 + 1, dtype=torch.bfloat16)[1:].view(5, 4, 64)},
        {"x": torch.empty(5, 260, dtype=torch.bfloat16)[:, :256].unflatten(1, (4, 64))},
        {"v": torch.empty(1, 256, 4, 64, dtype=torch.bfloat16).expand(2, -1, -1, -1)},
    ],
    ids=["fp32", "x in fp32", "d", "many keys", "few keys", "unaligned", "odd stride", "shared by rows"],
)
def test_what_tma_or_shared_memory_cannot_hold_is_not_for_it(changed: dict[str, Tensor]) -> None:
    assert not fits(**{**tensors(), **changed})


def test_events_that_shared_memory_cannot_hold_have_no_config() -> None:
    assert configs(features=64, d=64, keys=128) and configs(features=512, d=128, keys=256)
    assert not configs(features=1024, d=128, keys=256)
