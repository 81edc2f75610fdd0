"""The GDPA block beyond the contract."""

import pytest
import torch

from mfu_kernels import InvalidArgument, gdpa, gdpa_block, layer_norm, rms_norm
from tests.kernels.cases import CASES

CASE = next(case for case in CASES if case.name == "gdpa_block")


def test_it_is_the_chain_of_its_parts() -> None:
    tensors, offsets = CASE.tensors([2, 0, 3]), CASE.offsets([2, 0, 3])["offsets"]
    x, k, v = tensors.values()
    normed = layer_norm(x.flatten(1)).reshape(x.shape)
    inner = gdpa(normed, k, v, offsets, activation="silu") + normed
    chain = x + rms_norm(inner.flatten(1), eps=1e-5).reshape(x.shape)
    torch.testing.assert_close(gdpa_block(x, k, v, offsets, activation="silu"), chain)


def test_what_is_added_to_x_has_unit_rms_over_all_heads() -> None:
    tensors, offsets = CASE.tensors([4]), CASE.offsets([4])
    added = gdpa_block(**tensors, **offsets) - tensors["x"]
    torch.testing.assert_close(added.flatten(1).square().mean(dim=1), torch.ones(4).double(), rtol=1e-4, atol=0)


def test_a_row_of_zeros_stays_finite() -> None:
    tensors, offsets = CASE.tensors([2]), CASE.offsets([2])
    x = torch.zeros_like(tensors["x"]).requires_grad_()
    out = gdpa_block(x, tensors["k"], tensors["v"], **offsets, activation="identity")
    out.sum().backward()
    assert not out.any()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize(("argument", "value"), [("eps", 0.0), ("activation", "softmax")])
def test_bad_options(argument: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=f"^gdpa_block: {argument} is {value!r}; allowed: "):
        gdpa_block(**CASE.tensors([2]), **CASE.offsets([2]), **{argument: value})
