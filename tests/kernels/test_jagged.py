"""Packing and unpacking of jagged rows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_kernels.jagged import from_padded, host_max_length, row_lengths, row_mask, row_of_each, to_padded
from tests.kernels.cases import offsets_of

lengths_of_rows = st.lists(st.integers(0, 6), min_size=1, max_size=7)


@settings(deadline=None, max_examples=40)
@given(lengths_of_rows, st.integers(0, 3), st.sampled_from([torch.int32, torch.int64]))
def test_padding_and_back(lengths: list[int], slack: int, dtype: torch.dtype) -> None:
    offsets = offsets_of(lengths, dtype)
    values = torch.arange(1, 1 + 2 * sum(lengths)).reshape(-1, 2)
    max_length = host_max_length(offsets, None) + slack
    padded, mask = to_padded(values, offsets, max_length), row_mask(offsets, max_length)
    assert padded.shape == (len(lengths), max_length, 2)
    assert torch.equal(padded[mask], values)
    assert not padded[~mask].any()
    assert torch.equal(from_padded(padded, offsets, sum(lengths)), values)
    assert mask.sum(dim=1).tolist() == row_lengths(offsets) == lengths


def test_each_value_knows_its_row() -> None:
    assert row_of_each(offsets_of([0, 2, 0, 0, 3, 0]), 5).tolist() == [1, 1, 4, 4, 4]


def test_a_given_max_length_is_taken_as_it_is() -> None:
    assert host_max_length(offsets_of([2, 3]), 9) == 9
    assert host_max_length(offsets_of([0, 0]), None) == 0
