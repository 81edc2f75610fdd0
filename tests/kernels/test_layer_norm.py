"""LayerNorm beyond the contract."""

import pytest
import torch
import torch.nn.functional as F

from mfu_kernels import InvalidArgument, layer_norm
from tests.kernels.cases import CASES, cost_of

CASE = next(case for case in CASES if case.name == "layer_norm")


def test_without_options_it_is_torch_layer_norm() -> None:
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer_norm(x), F.layer_norm(x, (8,)))


def test_the_residual_is_added_in_fp32() -> None:
    x = torch.tensor([[256.0, 256.0, 256.0, 256.0]], dtype=torch.bfloat16)
    residual = torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.bfloat16)  # 257 is not a bf16 number
    expected = torch.tensor([[-1.0, 1.0, -1.0, 1.0]], dtype=torch.bfloat16)
    torch.testing.assert_close(layer_norm(x, residual=residual), expected)


def test_backward_bytes_are_inputs_but_the_bias_and_all_gradients() -> None:
    tensors = CASE.tensors([2, 3])
    x, weight, bias, residual = (tensor.nbytes for tensor in tensors.values())
    cost = cost_of(lambda: CASE.run(tensors))
    assert cost.bwd.bytes == (x + weight + residual) + x + (x + weight + bias + residual)


@pytest.mark.parametrize("argument", ["weight", "bias", "residual"])
def test_what_does_not_fit_x_is_named(argument: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^layer_norm: {argument} is of shape \[5\] on cpu; allowed: \["):
        layer_norm(torch.ones(2, 3), **{argument: torch.ones(5)})
