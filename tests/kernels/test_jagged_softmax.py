"""Jagged softmax beyond the contract."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mfu_kernels import jagged_pool, jagged_softmax
from tests.kernels.cases import CASES, gradients, offsets_of

CASE = next(case for case in CASES if case.name == "jagged_softmax")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_each_row_sums_to_one(lengths: list[int]) -> None:
    weights = jagged_softmax(**CASE.tensors(lengths), offsets=offsets_of(lengths))
    sums = jagged_pool(weights[:, None], offsets_of(lengths), mode="sum")[:, 0]
    torch.testing.assert_close(sums, torch.tensor([float(n > 0) for n in lengths], dtype=torch.float64))


def test_one_row_is_torchs_softmax() -> None:
    scores = CASE.tensors([7])["scores"]
    torch.testing.assert_close(jagged_softmax(scores, torch.tensor([0, 7])), scores.softmax(dim=0))


def test_large_scores_stay_finite() -> None:
    scores, offsets = CASE.tensors([3, 0, 4])["scores"], offsets_of([3, 0, 4])
    for raised in (1e4 * scores, scores - 1e5, scores + 1e5):
        out = jagged_softmax(raised, offsets)
        assert out.isfinite().all()
        assert all(grad.isfinite().all() for grad in gradients(out, {"scores": scores}).values())


def test_low_precision_is_summed_in_fp32() -> None:
    scores = torch.zeros(1000, dtype=torch.bfloat16)  # bf16 counts to 256 by ones
    assert jagged_softmax(scores, torch.tensor([0, 1000]))[0].item() == torch.tensor(1e-3).bfloat16().item()
