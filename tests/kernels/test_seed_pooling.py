"""Seed pooling beyond the contract."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_kernels import InvalidArgument, seed_pooling
from tests.kernels.cases import CASES, assert_same, gradients

CASE = next(case for case in CASES if case.name == "seed_pooling")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_any_lengths_equal_the_oracle(lengths: list[int]) -> None:
    tensors, offsets = CASE.tensors(lengths), CASE.offsets(lengths)
    actual, expected = CASE.run(tensors, **offsets), CASE.expect(tensors, **offsets)
    assert_same({"out": actual}, {"out": expected})
    assert_same(gradients(actual, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("max_length", [None, 6])
def test_an_empty_row_gives_zeros_and_no_nan(max_length: int | None) -> None:
    tensors, offsets = CASE.tensors([0, 3, 0]), CASE.offsets([0, 3, 0])
    out = seed_pooling(**tensors, **offsets, max_length=max_length)
    assert not out[0].any() and not out[2].any() and out[1].all()
    assert all(grad.isfinite().all() for grad in gradients(out, tensors).values())


def test_the_order_of_events_does_not_matter() -> None:
    tensors, offsets = CASE.tensors([4]), CASE.offsets([4])
    shuffled = tensors | {name: tensors[name].flip(0) for name in ("k", "v")}
    torch.testing.assert_close(seed_pooling(**shuffled, **offsets), seed_pooling(**tensors, **offsets))


def test_one_event_is_returned_to_every_seed() -> None:
    tensors, offsets = CASE.tensors([1]), CASE.offsets([1])
    torch.testing.assert_close(seed_pooling(**tensors, **offsets), tensors["v"][:, None].expand(-1, 5, -1, -1))


def test_no_seeds_are_an_error() -> None:
    tensors = CASE.tensors([2])
    with pytest.raises(
        InvalidArgument, match=r"seeds is of shape \[0, 2, 4\]; allowed: \[S, H, d\] with S = at least 1"
    ):
        seed_pooling(tensors["seeds"][:0], tensors["k"], tensors["v"], **CASE.offsets([2]))
