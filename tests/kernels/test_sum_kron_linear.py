"""SumKronLinear beyond the contract."""

import pytest
import torch

from mfu_kernels import InvalidArgument, sum_kron_linear
from tests.kernels.cases import CASES

CASE = next(case for case in CASES if case.name == "sum_kron_linear")


def test_it_is_a_linear_map_by_a_sum_of_kronecker_products() -> None:
    x, z, w = CASE.tensors([0, 0, 0]).values()
    full = sum(torch.kron(z[r].T.contiguous(), w[r].T.contiguous()) for r in range(z.shape[0]))
    expected = (x.flatten(1) @ full.T).reshape(3, z.shape[2], w.shape[2])
    torch.testing.assert_close(sum_kron_linear(x, z, w), expected)


@pytest.mark.parametrize(("empty", "dim"), [("x", 0), ("z", 2), ("w", 2)])
def test_empty_inputs_are_an_error(empty: str, dim: int) -> None:
    tensors = CASE.tensors([0, 0])
    with pytest.raises(InvalidArgument, match=f"sum_kron_linear: {empty} is of shape .* at least 1"):
        sum_kron_linear(**tensors | {empty: tensors[empty].narrow(dim, 0, 0)})
