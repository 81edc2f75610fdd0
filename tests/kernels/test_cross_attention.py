"""Cross attention beyond the contract: ordinary attention where nothing is jagged, own keys, empty rows."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mfu_kernels import InvalidArgument, cross_attention
from tests.kernels import oracles
from tests.kernels.cases import CASES, assert_same, gradients

CASE = next(case for case in CASES if case.name == "cross_attention")
OWN = next(case for case in CASES if case.name == "cross_attention-own")


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.booleans())
def test_any_lengths_equal_the_oracle(lengths: list[int], own: bool) -> None:
    case = OWN if own else CASE
    tensors, offsets = case.tensors(lengths), case.offsets(lengths)
    actual, expected = cross_attention(**tensors, **offsets), oracles.cross_attention(**tensors, **offsets)
    assert_same({"out": actual}, {"out": expected})
    assert_same(gradients(actual, tensors), gradients(expected, tensors))


def test_one_row_is_ordinary_attention() -> None:
    tensors = CASE.tensors([6])
    q, k, v = tensors["q"][0], tensors["k"], tensors["v"]
    expected = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v))).transpose(0, 1)
    torch.testing.assert_close(cross_attention(**tensors, **CASE.offsets([6]))[0], expected)


def test_a_query_sees_its_own_key_and_no_other_query_s() -> None:
    tensors, offsets = OWN.tensors([4, 2]), OWN.offsets([4, 2])
    before = cross_attention(**tensors, **offsets)
    changed = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    changed["own_k"][0, 1] += 1
    changed["own_v"][1, 2] += 1
    moved = (cross_attention(**changed, **offsets) != before).flatten(2).any(2)
    assert moved.tolist() == [[False, True, False], [False, False, True]]


def test_an_empty_row_gives_the_own_value_or_zeros() -> None:
    tensors = OWN.tensors([0, 3])
    assert torch.equal(cross_attention(**tensors, **OWN.offsets([0, 3]))[0], tensors["own_v"][0])
    without = {name: tensors[name] for name in ("q", "k", "v")}
    assert not cross_attention(**without, **OWN.offsets([0, 3]))[0].any()


def test_large_scores_stay_finite() -> None:
    tensors, offsets = OWN.tensors([3, 0, 4]), OWN.offsets([3, 0, 4])
    out = cross_attention(**{name: 1e3 * tensor for name, tensor in tensors.items()}, **offsets)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(out, tensors).values())


@pytest.mark.parametrize("missing", ["own_k", "own_v"])
def test_an_own_key_needs_an_own_value(missing: str) -> None:
    tensors = OWN.tensors([2])
    del tensors[missing]
    with pytest.raises(InvalidArgument, match=rf"{missing} is missing; allowed: both own_k and own_v, or neither"):
        cross_attention(**tensors, **OWN.offsets([2]))
