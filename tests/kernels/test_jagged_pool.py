"""Jagged pooling beyond the contract."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfu_kernels import InvalidArgument, jagged_pool
from tests.kernels.cases import CASES, cost_of, offsets_of

CASE = next(case for case in CASES if case.name == "jagged_pool-mean")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_the_sum_is_the_mean_times_the_length(lengths: list[int]) -> None:
    values, offsets = CASE.tensors(lengths)["values"], offsets_of(lengths)
    mean, total = (jagged_pool(values, offsets, mode=mode) for mode in ("mean", "sum"))
    torch.testing.assert_close(mean * torch.tensor(lengths)[:, None], total)


def test_low_precision_is_summed_in_fp32() -> None:
    values = torch.ones(1000, 1, dtype=torch.bfloat16)  # bf16 counts to 256 by ones
    assert jagged_pool(values, torch.tensor([0, 1000]), mode="sum").item() == 1000


def test_backward_does_not_read_the_values() -> None:
    values, offsets = CASE.tensors([2, 3])["values"], offsets_of([2, 3])
    cost = cost_of(lambda: jagged_pool(values, offsets))
    assert cost.bwd.bytes == offsets.nbytes + 2 * 6 * 8 + values.nbytes


def test_bad_mode() -> None:
    with pytest.raises(InvalidArgument, match=r"mode is 'max'; allowed: 'mean', 'sum'"):
        jagged_pool(torch.ones(2, 1), torch.tensor([0, 2]), mode="max")  # type: ignore[arg-type]
