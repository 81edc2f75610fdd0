"""Window attention beyond the contract: the mask, its closed form, rotation."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_kernels import InvalidArgument, rotary_time, window_attention
from mfu_kernels.window_attention.cost import kept_pairs
from tests.kernels import oracles
from tests.kernels.cases import CASES, assert_same, gradients

CASE = next(case for case in CASES if case.name == "window_attention-2")
ROTATED = next(case for case in CASES if case.name == "window_attention-all")
windows = st.none() | st.integers(0, 8)


@given(st.integers(0, 12), windows | st.integers(9, 99), st.booleans())
def test_kept_pairs_equal_a_count(length: int, window: int | None, causal: bool) -> None:
    pairs = [(i, j) for i in range(length) for j in range(length)]
    kept = [(i, j) for i, j in pairs if (window is None or abs(i - j) <= window) and (not causal or j <= i)]
    assert kept_pairs(length, window, causal) == len(kept)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), windows, st.booleans())
def test_any_lengths_and_windows_equal_the_oracle(lengths: list[int], window: int | None, causal: bool) -> None:
    tensors, offsets = CASE.tensors(lengths), CASE.offsets(lengths)
    actual = window_attention(**tensors, **offsets, window=window, causal=causal)
    expected = oracles.window_attention(**tensors, **offsets, window=window, causal=causal)
    assert_same({"out": actual}, {"out": expected})
    assert_same(gradients(actual, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("causal", [False, True])
def test_one_row_without_window_is_ordinary_attention(causal: bool) -> None:
    tensors, offsets = CASE.tensors([6]), CASE.offsets([6])
    q, k, v = (tensor.transpose(0, 1) for tensor in tensors.values())
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1)
    torch.testing.assert_close(window_attention(**tensors, **offsets, window=None, causal=causal), expected)


def test_a_window_of_0_returns_the_values() -> None:
    tensors, offsets = CASE.tensors([3, 4]), CASE.offsets([3, 4])
    torch.testing.assert_close(window_attention(**tensors, **offsets, window=0), tensors["v"])


def test_angles_rotate_queries_and_keys_first() -> None:
    tensors, offsets = ROTATED.tensors([3, 4]), ROTATED.offsets([3, 4])
    q, k, v, angles = tensors.values()
    apart = window_attention(rotary_time(q, angles), rotary_time(k, angles), v, **offsets, window=1)
    assert torch.equal(window_attention(q, k, v, **offsets, window=1, angles=angles), apart)


def test_large_scores_stay_finite() -> None:
    tensors, offsets = CASE.tensors([3, 0, 4]), CASE.offsets([3, 0, 4])
    out = window_attention(**{name: 1e3 * tensor for name, tensor in tensors.items()}, **offsets, window=1)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(out, tensors).values())


def test_bad_window() -> None:
    with pytest.raises(InvalidArgument, match=r"window is -1; allowed: None or an integer of at least 0"):
        window_attention(**CASE.tensors([2]), **CASE.offsets([2]), window=-1)


def test_odd_head_width_cannot_be_rotated() -> None:
    odd = {name: tensor[..., :3] for name, tensor in CASE.tensors([2]).items()}
    with pytest.raises(InvalidArgument, match=r"angles is .* with d = 3; allowed: \[T, d/2\] with d even"):
        window_attention(**odd, **CASE.offsets([2]), window=1, angles=torch.zeros(2, 1))
