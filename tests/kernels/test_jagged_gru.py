"""The jagged GRU beyond the contract: torch's own GRU, what attention does, its sequence."""

import pytest
import torch

from mfu_kernels import InvalidArgument, jagged_gru
from tests.kernels.cases import CASES, cost_of

CASE = next(case for case in CASES if case.name == "jagged_gru")
PLAIN = next(case for case in CASES if case.name == "jagged_gru-plain")


def test_one_row_is_torchs_gru() -> None:
    """torch has the gates in another order, and its update gate keeps where this one renews."""
    gru = torch.nn.GRU(5, 4, dtype=torch.float64)
    torch.nn.init.zeros_(gru.bias_hh_l0)
    x = torch.randn(7, 5, dtype=torch.float64)
    signs = torch.tensor([-1.0] * 4 + [1.0] * 8, dtype=torch.float64)
    order = torch.tensor([*range(4, 8), *range(4), *range(8, 12)])
    gates = (x @ gru.weight_ih_l0.T + gru.bias_ih_l0)[:, order] * signs
    states = jagged_gru(gates, gru.weight_hh_l0.T[:, order] * signs, torch.tensor([0, 7]))
    torch.testing.assert_close(states, gru(x)[0])


def test_attention_scales_how_much_a_step_renews() -> None:
    tensors, offsets = PLAIN.tensors([4, 2]), PLAIN.offsets([4, 2])
    plain = jagged_gru(**tensors, **offsets)
    ones, zeros = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    torch.testing.assert_close(jagged_gru(**tensors, **offsets, attention=ones), plain)
    assert not jagged_gru(**tensors, **offsets, attention=zeros).any()
    first_only = torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.float64)
    kept = jagged_gru(**tensors, **offsets, attention=first_only)
    torch.testing.assert_close(kept, plain[[0, 0, 0, 0, 4, 4]])


def test_a_state_depends_on_the_steps_before_it_alone() -> None:
    tensors, offsets = CASE.tensors([3, 4]), CASE.offsets([3, 4])
    changed = tensors | {"gates": tensors["gates"].detach().clone()}
    changed["gates"][4] += 1
    differs = (jagged_gru(**changed, **offsets) != jagged_gru(**tensors, **offsets)).any(dim=1)
    assert differs.tolist() == [False] * 4 + [True] * 3


def test_the_state_is_kept_in_fp32() -> None:
    """A thousand steps that each renew by 1/512 at most would stand still in bf16 long before their limit."""
    gates = torch.tensor([[0.0, 0.0, 5.0]], dtype=torch.bfloat16).expand(1500, 3)
    attention = torch.full((1500,), 2**-8, dtype=torch.bfloat16)
    weight = torch.zeros(1, 3, dtype=torch.bfloat16)
    states = jagged_gru(gates, weight, torch.tensor([0, 1500]), attention=attention)
    assert states.dtype == torch.bfloat16
    assert states[-1] > 0.9


def test_the_first_state_needs_no_gradient() -> None:
    tensors, offsets = PLAIN.tensors([3, 0, 1]), PLAIN.offsets([3, 0, 1])
    cost = cost_of(lambda: jagged_gru(**tensors, **offsets))
    step = 2 * 4 * 12
    assert (cost.fwd.model, cost.bwd.model) == (4 * step, (4 + 2) * step)


def test_a_weight_of_another_shape_is_an_error() -> None:
    tensors = PLAIN.tensors([2])
    with pytest.raises(InvalidArgument, match=r"weight is of shape \[5, 12\]; allowed: \[h, 3h\]"):
        jagged_gru(tensors["gates"], torch.zeros(5, 12, dtype=torch.float64), **PLAIN.offsets([2]))
