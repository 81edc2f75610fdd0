"""RMSNorm beyond the contract."""

import pytest
import torch

from mfu_kernels import InvalidArgument, rms_norm


def test_rows_have_unit_rms() -> None:
    x = 100 * torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rms_norm(x).square().mean(dim=-1), torch.ones(5, dtype=torch.float64))


def test_statistics_of_low_precision_are_in_fp32() -> None:
    x = torch.full((1, 8), 300.0, dtype=torch.float16)  # its square is more than fp16 holds
    assert torch.equal(rms_norm(x), torch.ones_like(x))


def test_weight_may_be_wider_than_x() -> None:
    x, weight = torch.ones(2, 4, dtype=torch.bfloat16), torch.full((4,), 2.0)
    out = rms_norm(x, weight)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, 2 * x)


def test_zeros_stay_finite() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
def test_bad_eps(eps: float) -> None:
    with pytest.raises(InvalidArgument, match=f"^rms_norm: eps is {eps}; allowed: a number above 0"):
        rms_norm(torch.ones(2, 3), eps=eps)


@pytest.mark.parametrize("shape", [(), (2, 0)])
def test_nothing_to_normalise(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match=r"^rms_norm: x is of shape \[.*\]; allowed: \[\.\.\., D\]"):
        rms_norm(torch.ones(shape))
