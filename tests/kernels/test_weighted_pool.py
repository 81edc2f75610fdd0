"""Weighted pooling beyond the contract."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_kernels import jagged_pool, weighted_pool
from tests.kernels.cases import CASES, assert_same, gradients, offsets_of

CASE = next(case for case in CASES if case.name == "weighted_pool")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_any_lengths_equal_the_oracle(lengths: list[int]) -> None:
    tensors, offsets = CASE.tensors(lengths), CASE.offsets(lengths)
    actual, expected = CASE.run(tensors, **offsets), CASE.expect(tensors, **offsets)
    assert_same({"out": actual}, {"out": expected})
    assert_same(gradients(actual, tensors), gradients(expected, tensors))


def test_weights_are_taken_as_they_are() -> None:
    values, offsets = CASE.tensors([3, 0, 4])["values"], offsets_of([3, 0, 4])
    total = jagged_pool(values, offsets, mode="sum")
    for weight in (1.0, -2.0, 0.0):
        weights = torch.full((7,), weight, dtype=torch.float64)
        torch.testing.assert_close(weighted_pool(values, weights, offsets), weight * total)
