"""Attention that is written out needs the pairs that its mask keeps, as if it were one operator."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from mfubench.measure import masked
from mfubench.measure.count import Count, count_step
from mfubench.measure.scopes import BACKWARD, FORWARD, ScopeTracker

B, H, L, D = 2, 2, 8, 4
CAUSAL = torch.ones(L, L, dtype=torch.bool).tril()
PAIRS = B * H * int(CAUSAL.sum())
ALL = B * H * L * L
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def counted(attend: Attention, *, train: bool = True) -> Count:
    torch.manual_seed(0)
    inputs = [torch.randn(B, H, L, D, requires_grad=train) for _ in range(3)]

    def step(tracker: ScopeTracker) -> None:
        with tracker.phase(FORWARD):
            out = attend(*inputs)
        if train:
            with tracker.phase(BACKWARD):
                out.sum().backward()

    return count_step(nn.Identity(), step)


def model_flops(attend: Attention) -> tuple[int, int]:
    """Forward and backward, in products of one pair's rows."""
    count = counted(attend)
    assert count.total().hardware == 12 * ALL * D  # they are all computed
    return count.total("fwd").model // (2 * D), count.total("bwd").model // (2 * D)


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(D)


def by_fill(q: Tensor, k: Tensor, v: Tensor, *, fill: float = -math.inf, dropout: float = 0.0) -> Tensor:
    return F.dropout(scores_of(q, k).masked_fill(~CAUSAL, fill).softmax(-1), dropout) @ v


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = scores_of(q, k)
    scores += torch.zeros(H, L, L)
    scores.masked_fill_(~CAUSAL, -math.inf)
    return scores.softmax(-1) @ v


def by_an_addend(q: Tensor, k: Tensor, v: Tensor, *, dtype: torch.dtype = torch.float32, bias: float = 0.0) -> Tensor:
    """As BERT has it: a pair whose score was above zero ends above -10000."""
    scores = scores_of(q, k).to(dtype) + (1 - CAUSAL.to(dtype)) * -10000 + bias * torch.rand(L, L).to(dtype)
    return scores.softmax(-1).float() @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
    weights = torch.where(CAUSAL, scores, torch.tensor(-1e9)).float().softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def in_slices(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first, rest = scores_of(q, k).masked_fill(~CAUSAL, -math.inf).softmax(-1).split([H, 0], dim=1)
    return torch.cat([first, rest], dim=1) @ v


def by_the_math_backend(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "attend",
    [
        by_fill,
        partial(by_fill, fill=-1e9),
        partial(by_fill, dropout=0.5),
        in_place,
        by_an_addend,
        partial(by_an_addend, dtype=torch.half),
        partial(by_an_addend, dtype=torch.bfloat16),
        partial(by_an_addend, bias=100.0),
        by_einsum,
        in_slices,
        partial(by_the_math_backend, is_causal=True),
        partial(by_the_math_backend, attn_mask=CAUSAL),
        partial(by_the_math_backend, attn_mask=torch.zeros(L, L).masked_fill(~CAUSAL, -1e9), dropout_p=0.5),
        partial(by_the_math_backend, attn_mask=3.0 - 1e4 * ~CAUSAL),
    ],
)
def test_masked_pairs_are_not_useful(attend: Attention) -> None:
    assert model_flops(attend) == (2 * PAIRS, 4 * PAIRS)


def test_padded_stands_for_what_is_computed() -> None:
    assert counted(by_fill).total().padded == 12 * ALL * D


def test_scores_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they nearly fill the device, masks as large as they are would not fit."""
    whole, seen = model_flops(by_fill), []
    real = torch.Tensor.split
    monkeypatch.setattr(masked, "SLICE", 3 * L * L)
    monkeypatch.setattr(torch.Tensor, "split", lambda rows, size: seen.append(size) or real(rows, size))
    assert model_flops(by_fill) == whole == (2 * PAIRS, 4 * PAIRS) and set(seen) <= {1, 3}


def test_what_is_not_masked_is_needed_whole() -> None:
    assert model_flops(lambda q, k, v: scores_of(q, k).softmax(-1) @ v) == (2 * ALL, 4 * ALL)
    assert model_flops(lambda q, k, v: F.dropout(scores_of(q, k).softmax(-1), 0.5) @ v) == (2 * ALL, 4 * ALL)
    assert model_flops(lambda q, k, v: scores_of(q, k).masked_fill(~CAUSAL, 0.0).sigmoid() @ v) == (2 * ALL, 4 * ALL)


@pytest.mark.parametrize("below", [110.0, 2000.0])
@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.float32], ids=str)
def test_a_weight_of_zero_alone_is_no_mask(dtype: torch.dtype, below: float) -> None:
    """A score so far below the highest has none left, and who computes attention has to find that out."""
    far = torch.zeros(L, L).fill_diagonal_(below)
    weights: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights.append((scores_of(q, k) + far).to(dtype).softmax(-1))
        return weights[0].float() @ v

    assert model_flops(attend) == (2 * ALL, 4 * ALL)
    assert int((weights[0] == 0).sum()) == ALL - B * H * L


def test_the_highest_score_is_that_of_the_softmax_s_own_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the first, which no part has whole."""
    monkeypatch.setattr(masked, "SLICE", 1)
    far = torch.zeros(L, L).fill_diagonal_(110.0) + 1e4 * torch.arange(L)[:, None]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (scores_of(q, k) + far).permute(3, 0, 1, 2).softmax(0)
        return weights.permute(1, 2, 3, 0) @ v

    assert model_flops(attend) == (2 * ALL, 4 * ALL)


# The mask of a fused operator, and how many pairs of one head it keeps.
MASKS = {
    "BERT's, beside a bias": (-1e4 * ~CAUSAL + torch.rand(L, L), 36),
    "in half precision": ((-1e4 * ~CAUSAL).half(), 36),
    "a bias as steep as ALiBi's": (-4.0 * torch.arange(L).expand(L, L), L * L),
    "of one key for all": (torch.full((L, L), -1e9).index_fill_(1, torch.tensor([2]), 0.0), L),
    "a row without keys, as the least number": (torch.zeros(L, L).index_fill_(0, torch.tensor([1]), -3e38), L * L),
    "a row without keys, as infinities": (torch.zeros(L, L).index_fill_(0, torch.tensor([1]), -math.inf), (L - 1) * L),
    "queries that are shut out whole": (torch.zeros(L, 1).index_fill_(0, torch.tensor([1]), -1e4), L * L),
}


@pytest.mark.parametrize(("mask", "pairs"), MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=["written out", "fused"])
def test_a_bias_drops_what_it_lowers_below_the_highest_of_its_row(
    mask: Tensor, pairs: int, backend: SDPBackend
) -> None:
    """Of keys that are all lowered alike a softmax keeps all; of those at minus infinity none."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))

    assert counted(attend).total("fwd").model == 4 * B * H * pairs * D


def test_two_products_may_make_the_scores() -> None:
    """Those of contents and those of places."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = scores_of(q, k) + torch.matmul(q, torch.ones(B, H, D, L))
        return scores.masked_fill(~CAUSAL, -math.inf).softmax(-1) @ v

    assert counted(attend).total("fwd").model == 6 * PAIRS * D


def test_scores_that_make_their_own_mask_are_needed_whole() -> None:
    def top(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = scores_of(q, k)
        least = scores.topk(3, dim=-1).values[..., -1:]
        return scores.masked_fill(scores < least, -math.inf).softmax(-1) @ v

    assert counted(top).total("fwd").model == 2 * (ALL + B * H * L * 3) * D


def test_weights_that_are_filled_up_again_are_needed_whole() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (scores_of(q, k).masked_fill(~CAUSAL, -math.inf).softmax(-1) + 0.1) @ v

    assert counted(attend).total("fwd").model == 2 * (PAIRS + ALL) * D


def test_a_row_without_keys_is_what_its_softmax_makes_of_it() -> None:
    """All of its scores lowered alike, it has the mean of all values."""
    mask = CAUSAL.clone()
    mask[0] = False
    kept = B * H * (int(mask.sum()) + L)
    count = counted(lambda q, k, v: scores_of(q, k).masked_fill(~mask, -1e9).softmax(-1) @ v)
    assert count.total("fwd").model == 4 * kept * D


def test_a_repeated_forward_is_not_discounted_twice() -> None:
    count = counted(lambda q, k, v: checkpoint(by_fill, q, k, v, use_reentrant=False))  # type: ignore[return-value]
    assert (count.total("fwd").model, count.total("bwd").model) == (4 * PAIRS * D, 8 * PAIRS * D)
    assert count.total().recomputed == 2 * ALL * D  # it ends before the last product


def test_empty_rows_and_inference() -> None:
    with torch.inference_mode():
        assert counted(by_fill, train=False).total().model == 4 * PAIRS * D
    empty = torch.zeros(2, 0, 4)
    count = count_step(nn.Identity(), lambda tracker: (empty @ empty.transpose(1, 2)).softmax(-1) @ empty)
    assert count.total().model == 0


@pytest.mark.parametrize("weights", [False, True])
def test_multihead_attention_counts_alike_with_and_without_its_weights(weights: bool) -> None:
    attention = nn.MultiheadAttention(8, H, batch_first=True)
    x = torch.randn(B, L, 8)

    def step(tracker: ScopeTracker) -> None:
        with tracker.phase(FORWARD):
            out = attention(x, x, x, attn_mask=~CAUSAL, need_weights=weights)[0]
        with tracker.phase(BACKWARD):
            out.sum().backward()

    projections = 2 * B * L * 8 * 8
    count = count_step(attention, step)
    assert count.total("fwd").model == 4 * projections + 4 * PAIRS * D
    assert count.total("bwd").model == (3 + 2) * projections + 8 * PAIRS * D
