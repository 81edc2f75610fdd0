"""Rotary embedding of position and time beyond the contract."""

import pytest
import torch

from mfu_kernels import InvalidArgument, rotary_angles, rotary_time
from tests.kernels.cases import CASES, cost_of

CASE = next(case for case in CASES if case.name == "rotary_time")


def test_rotation_keeps_lengths_and_0_changes_nothing() -> None:
    x, angles = CASE.tensors([5]).values()
    torch.testing.assert_close(rotary_time(x, angles).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotary_time(x, torch.zeros_like(angles)), x)


def test_a_quarter_turn_moves_the_first_half_to_the_second() -> None:
    x = torch.tensor([[[1.0, 2.0, 0.0, 0.0]]], dtype=torch.float64)
    turned = rotary_time(x, torch.full((1, 2), torch.pi / 2, dtype=torch.float64))
    torch.testing.assert_close(turned, torch.tensor([[[0.0, 0.0, 1.0, 2.0]]], dtype=torch.float64))


def test_products_depend_on_differences_only() -> None:
    x, angles = CASE.tensors([5]).values()

    def products(by: float) -> torch.Tensor:
        turned = rotary_time(x, angles + by)[:, 0]
        return turned @ turned.T

    torch.testing.assert_close(products(0.0), products(1.7))


def test_large_angles_of_low_precision_inputs_are_exact() -> None:
    x, angles = torch.ones(1, 1, 2, dtype=torch.bfloat16), torch.tensor([[1001.3]])
    expected = rotary_time(x.double(), angles.double()).bfloat16()
    torch.testing.assert_close(rotary_time(x, angles), expected)


def test_angles_are_positions_and_times_by_their_frequencies() -> None:
    positions, log_gaps = torch.tensor([0, 1, 2]), torch.tensor([0.0, 0.5, 1.5])
    theta, phi = torch.tensor([1.0, 0.1], requires_grad=True), torch.tensor([0.0, 2.0], requires_grad=True)
    angles = rotary_angles(positions, log_gaps, theta, phi)
    torch.testing.assert_close(angles, torch.tensor([[0.0, 0.0], [1.0, 1.1], [2.0, 3.2]]))
    angles.sum().backward()
    torch.testing.assert_close(theta.grad, torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(phi.grad, torch.tensor([2.0, 2.0]))


def test_backward_reads_x_only_for_the_angles() -> None:
    tensors = CASE.tensors([5])
    x, angles = tensors.values()
    with_angles = cost_of(lambda: rotary_time(x, angles)).bwd.bytes
    without = cost_of(lambda: rotary_time(x, angles.detach())).bwd.bytes
    assert with_angles - without == x.nbytes + angles.nbytes


@pytest.mark.parametrize(("width", "num_angles"), [(3, 1), (4, 4), (3, 2)])
def test_odd_width_and_wrong_number_of_angles(width: int, num_angles: int) -> None:
    with pytest.raises(InvalidArgument, match=r"^rotary_time: angles is .*; allowed: \[T, d/2\] with d even"):
        rotary_time(torch.ones(2, 1, width), torch.ones(2, num_angles))


def test_angles_of_other_events() -> None:
    with pytest.raises(InvalidArgument, match=r"rotary_angles: log_gaps is of shape \[2\]; allowed: \[T\] with T = 3"):
        rotary_angles(torch.arange(3), torch.ones(2), torch.ones(1), torch.ones(1))
