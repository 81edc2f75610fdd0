"""Hash pooling beyond the contract."""

import pytest
import torch

from mfu_kernels import InvalidArgument, hash_pool, jagged_pool
from tests.kernels.cases import CASES, cost_of, offsets_of

CASE = next(case for case in CASES if case.name == "hash_pool")


def test_a_value_counts_in_the_groups_whose_bits_all_agree() -> None:
    values = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    query = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    hashes = torch.tensor(
        [[2.0, -3.0, 0.5, 9.0], [1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, -1.0], [-1.0, -1.0, 1.0, 1.0]]
    )
    sums = {bits: hash_pool(values, hashes, query, torch.tensor([0, 4]), bits=bits).flatten() for bits in (1, 2, 4)}
    assert sums[1].tolist() == [11, 1011, 1011, 1001]
    assert sums[2].tolist() == [11, 1001]
    assert sums[4].tolist() == [1]


def test_only_signs_count_and_0_is_positive() -> None:
    tensors, offsets = CASE.tensors([3, 4]), CASE.offsets([3, 4])
    out = hash_pool(**tensors, **offsets, bits=2)
    signs = {name: tensors[name].sign() for name in ("hashes", "query_hashes")}
    assert torch.equal(hash_pool(tensors["values"], **signs, **offsets, bits=2), out)
    not_negative = {name: tensor.clamp(min=0) - (tensor < 0).double() for name, tensor in tensors.items()}
    zeros = {name: torch.where(t > 0, 0.0, t).double() for name, t in not_negative.items() if name != "values"}
    assert torch.equal(hash_pool(tensors["values"], **zeros, **offsets, bits=2), out)


def test_with_all_hashes_alike_every_group_is_the_sum() -> None:
    values, offsets = CASE.tensors([3, 0, 4])["values"], offsets_of([3, 0, 4])
    out = hash_pool(values, torch.ones(7, 6), torch.ones(3, 6), offsets, bits=3)
    torch.testing.assert_close(out, jagged_pool(values, offsets, mode="sum")[:, None].expand(-1, 2, -1))


def test_hashes_have_no_gradient() -> None:
    tensors = {name: tensor.detach().requires_grad_() for name, tensor in CASE.tensors([3, 4]).items()}
    out = CASE.run(tensors, **CASE.offsets([3, 4]))
    grads = torch.autograd.grad(out.sum(), list(tensors.values()), allow_unused=True)
    assert [grad is not None for grad in grads] == [True, False, False]
    fixed = tensors | {"values": tensors["values"].detach()}
    assert cost_of(lambda: CASE.run(fixed, **CASE.offsets([3, 4]))).bwd.bytes == 0


def test_low_precision_is_summed_in_fp32() -> None:
    values = torch.ones(1000, 1, dtype=torch.bfloat16)  # bf16 counts to 256 by ones
    out = hash_pool(values, torch.ones(1000, 1), torch.ones(1, 1), torch.tensor([0, 1000]), bits=1)
    assert out.item() == 1000


@pytest.mark.parametrize("bits", [0, 3, 8])
def test_bad_bits(bits: int) -> None:
    with pytest.raises(InvalidArgument, match=f"bits is {bits}; allowed: a divisor of m = 4"):
        hash_pool(**CASE.tensors([2]), **CASE.offsets([2]), bits=bits)


def test_another_number_of_queries_is_an_error() -> None:
    tensors = CASE.tensors([2, 3])
    with pytest.raises(InvalidArgument, match=r"query_hashes is of shape \[1, 4\]; allowed: \[B, m\] with B = 2"):
        hash_pool(tensors["values"], tensors["hashes"], tensors["query_hashes"][:1], **CASE.offsets([2, 3]), bits=2)
