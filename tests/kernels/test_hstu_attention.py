"""HSTU attention beyond the contract: the candidates' mask, the window and the first keys, no softmax, the bias."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_kernels import InvalidArgument, hstu_attention
from mfu_kernels.hstu_attention.cost import kept_pairs
from tests.kernels import oracles
from tests.kernels.cases import CASES, assert_same, gradients

CASE = next(case for case in CASES if case.name == "hstu_attention")
windows = st.none() | st.integers(0, 8)


@given(st.integers(0, 12), windows | st.integers(9, 99), st.integers(0, 9), st.integers(1, 14))
def test_kept_pairs_equal_a_count(length: int, window: int | None, first_keys: int, num_candidates: int) -> None:
    history = max(0, length - num_candidates)
    kept = 0
    for i in range(length):
        here = min(i, history)
        seen = [j for j in range(here) if window is None or here - j <= window or j < first_keys]
        kept += len(seen) + 1
    assert kept_pairs(length, window, first_keys, num_candidates) == kept


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=4),
    st.fixed_dictionaries({"window": windows, "first_keys": st.integers(0, 4), "num_candidates": st.integers(1, 4)}),
)
def test_any_lengths_and_masks_equal_the_oracle(lengths: list[int], mask: dict[str, Any]) -> None:
    tensors, offsets = CASE.tensors(lengths), CASE.offsets(lengths)
    actual = hstu_attention(**tensors, **offsets, norm_length=5, **mask)
    expected = oracles.hstu_attention(**tensors, **offsets, norm_length=5, **mask)
    assert_same({"out": actual}, {"out": expected})
    assert_same(gradients(actual, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("mask", [{}, {"window": 2}, {"window": 1, "first_keys": 2}], ids=str)
def test_candidates_together_equal_each_alone(mask: dict[str, int]) -> None:
    tensors = CASE.tensors([9])
    together = CASE.run(tensors, **CASE.offsets([9]), num_candidates=4, **mask)
    for i in range(5, 9):
        rows = [*range(5), i]
        alone = CASE.run({name: t[rows] for name, t in tensors.items()}, **CASE.offsets([6]), **mask)
        torch.testing.assert_close(together[rows], alone)


def test_a_row_of_candidates_only_sees_nothing_else() -> None:
    tensors = CASE.tensors([3, 2])
    out = CASE.run(tensors, **CASE.offsets([3, 2]), num_candidates=3)
    q, k, v = tensors.values()
    torch.testing.assert_close(out, F.silu((q * k).sum(-1, keepdim=True) * 4**-0.5) * v / 9)


def test_without_softmax_a_key_seen_twice_counts_twice_and_n_is_given() -> None:
    tensors = CASE.tensors([2])
    twice = {name: tensor[[0, 0, 1]] for name, tensor in tensors.items()}
    q, k, v = tensors.values()
    scores = F.silu((q[1] * k).sum(-1) * 4**-0.5)
    for norm_length in (1, 8):
        out = hstu_attention(**twice, **CASE.offsets([3]), norm_length=norm_length)
        expected = (2 * scores[0, :, None] * v[0] + scores[1, :, None] * v[1]) / norm_length
        torch.testing.assert_close(out[2], expected)


def test_the_bias_is_by_distance_and_its_last_entry_goes_on() -> None:
    tensors, offsets = CASE.tensors([5]), CASE.offsets([5])
    q, k, v = tensors.values()
    bias = torch.randn(2, 3, dtype=torch.float64)
    out = hstu_attention(q, k, v, **offsets, bias=bias, norm_length=1)
    scores = torch.stack([(q[4] * k[j]).sum(-1) * 4**-0.5 + bias[:, min(4 - j, 2)] for j in range(5)], dim=1)
    torch.testing.assert_close(out[4], torch.einsum("hj,jhd->hd", F.silu(scores), v))


@pytest.mark.parametrize("name", ["norm_length", "window", "first_keys", "num_candidates"])
def test_bad_numbers(name: str) -> None:
    options = {"norm_length": 9, name: -1}
    with pytest.raises(InvalidArgument, match=rf"hstu_attention: {name} is -1; allowed: .*integer of at least [01]"):
        hstu_attention(**CASE.tensors([2]), **CASE.offsets([2]), **options)
