"""FlexAttention: the pairs that its mask keeps are needed, and the blocks that it lists are multiplied."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.flex_attention import flex_attention as operator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mfubench.measure import flex
from mfubench.measure.compiled import run_eagerly
from mfubench.measure.count import Count, count_step
from mfubench.measure.flex import Pairs, flex_pairs
from mfubench.measure.scopes import BACKWARD, FORWARD, ScopeTracker

B, H, L, D = 2, 4, 10, 8
BLOCK = 4  # of 3 that cover a row, the last one has 2 places
ROWS = torch.tensor([[0] * 5 + [1] * 5, [0] * 10])  # of a user: one sample has two, packed
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


def packed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return ROWS[b, q] == ROWS[b, k]


def wider_from_head_to_head(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= k) & (q - k <= h)


def nothing(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k < 0


def blocks(mask: Mask, batch: int | None = None, heads: int | None = None, size: Any = BLOCK) -> BlockMask:
    return create_block_mask(mask, batch, heads, L, L, device="cpu", BLOCK_SIZE=size)


def tensors(*, key_heads: int = H, value_width: int = D) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(B, H, L, D), torch.randn(B, key_heads, L, D), torch.randn(B, key_heads, L, value_width)


def infer(*inputs: Tensor, **options: Any) -> Count:
    with run_eagerly(), torch.no_grad():
        return count_step(nn.Identity(), lambda _tracker: flex_attention(*inputs, **options))


# A mask, what its blocks vary by, and its pairs in the whole batch.
MASKS: dict[str, tuple[Mask, tuple[int | None, int | None], Pairs]] = {
    "causal": (causal, (None, None), Pairs(B * H * 55, B * H * (4 * 4 + 4 * 8 + 2 * 10))),
    "causal, blocks for each sample": (causal, (B, None), Pairs(B * H * 55, B * H * 68)),
    "packed": (packed, (B, None), Pairs(H * (25 + 25 + 100), H * (100 - 2 * 4 * 2 + 100))),
    "by head": (wider_from_head_to_head, (None, H), Pairs(B * (10 + 19 + 27 + 34), B * (36 + 3 * 60))),
    "by sample and head": (
        lambda b, h, q, k: packed(b, h, q, k) & wider_from_head_to_head(b, h, q, k),
        (B, H),
        # Where the user changes, one pair of neighbours goes, two of places that are two apart, and three of three.
        Pairs(10 + 19 - 1 + 27 - 3 + 34 - 6 + 90, 2 * 36 + 3 * 60 + 3 * 60),
    ),
    "nothing": (nothing, (None, None), Pairs(0, 0)),
}


@pytest.mark.parametrize("at_once", [flex.SLICE, 3 * L, 1])
@pytest.mark.parametrize(("mask", "varies", "pairs"), MASKS.values(), ids=MASKS.keys())
def test_pairs_that_a_mask_keeps_and_pairs_in_listed_blocks(
    mask: Mask, varies: tuple[int | None, int | None], pairs: Pairs, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "SLICE", at_once)
    query, key, _ = tensors()
    assert flex_pairs(query, key, blocks(mask, *varies).as_tuple()) == pairs


def test_a_function_is_asked_for_samples_and_heads_only_where_it_looks_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import flex_attention as module

    query, key, _ = tensors()
    given = {mask: blocks(mask, B, H).as_tuple() for mask in (causal, packed, wider_from_head_to_head)}
    real, asked = module.create_mask, []
    monkeypatch.setattr(module, "create_mask", lambda f, *of, **on: asked.append(of) or real(f, *of, **on))
    for block_mask in given.values():
        flex_pairs(query, key, block_mask)
    probe = (B, H, 1, L)
    assert asked == [probe, (1, 1, L, L), probe, (B, 1, L, L), probe, (1, H, L, L)]


def test_blocks_need_not_be_square_and_a_list_may_end_before_its_row_does() -> None:
    query, key, _ = tensors()
    of_two_rows = blocks(causal, size=(2, 5)).as_tuple()  # rows of blocks: 5 keys, 5, 10 (its query 5 sees key 5), ..
    assert flex_pairs(query, key, of_two_rows) == Pairs(B * H * 55, B * H * 2 * (5 + 5 + 10 + 10 + 10))
    numbers, places = torch.ones(1, 1, 2, dtype=torch.int32), torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.int32)
    lists = BlockMask.from_kv_blocks(numbers, places, BLOCK_SIZE=5, seq_lengths=(L, L))
    assert flex_pairs(query, key, lists.as_tuple()) == Pairs(B * H * 50, B * H * 50)
    full = BlockMask.from_kv_blocks(0 * numbers, places, numbers, places, 5, nothing, (L, L))
    assert flex_pairs(query, key, full.as_tuple()) == Pairs(B * H * 50, B * H * 50)  # whose function nobody asks


def test_a_forward_is_two_products_and_its_mask_makes_the_padding() -> None:
    total = infer(*tensors(), block_mask=blocks(causal)).total()
    assert (total.model, total.hardware, total.recomputed) == (4 * D * B * H * 55, 4 * D * B * H * 68, 0)
    assert total.padded == total.hardware


def test_without_a_mask_all_pairs_are_needed() -> None:
    total = infer(*tensors()).total()
    assert total.model == total.hardware == 4 * D * B * H * L * L
    changed = infer(*tensors(), score_mod=lambda score, b, h, q, k: torch.where(q >= k, score, -float("inf"))).total()
    assert changed.model == total.model  # only the scores tell


def test_heads_that_share_keys_count_by_their_queries_and_values_by_their_width() -> None:
    count = infer(*tensors(key_heads=2, value_width=3 * D), block_mask=blocks(causal), enable_gqa=True)
    assert count.total().model == (2 * D + 2 * 3 * D) * B * H * 55
    assert {key.kind for key, work in count.work.items() if work.hardware} == {"attention"} and not count.unknown_ops


def test_a_compiled_call_counts_like_one_that_is_not() -> None:
    compiled = torch.compile(flex_attention, backend="eager")
    inputs, mask = tensors(), blocks(packed, B)
    with run_eagerly(), torch.no_grad():
        count = count_step(nn.Identity(), lambda _tracker: compiled(*inputs, block_mask=mask))
    assert count.total() == infer(*inputs, block_mask=mask).total()


def test_the_backward_is_four_products_and_three_that_its_two_walks_repeat() -> None:
    """Other fused attention walks once. On a CPU torch refuses to train, if not the operator below."""
    inputs, mask = [each.requires_grad_() for each in tensors(value_width=3 * D)], blocks(causal).as_tuple()

    def step(tracker: ScopeTracker) -> None:
        with tracker.phase(FORWARD):
            out = operator(*inputs, lambda score, *_: 2 * score, mask, 1.0, {})[0]
        with tracker.phase(BACKWARD):
            out.sum().backward()

    with run_eagerly():
        count = count_step(nn.Identity(), step)
    forward, backward, once = count.total("fwd"), count.total("bwd"), (2 * D + 2 * 3 * D) * B * H
    assert (forward.model, forward.hardware, forward.recomputed) == (once * 55, once * 68, 0)
    again = (2 * 2 * D + 2 * 3 * D) * B * H * 68
    assert (backward.model, backward.hardware, backward.recomputed) == (2 * once * 55, 2 * once * 68 + again, again)
    assert all(each.grad is not None for each in inputs) and not count.unknown_ops


def test_a_function_may_have_its_tensors_apart() -> None:
    """As a compiler's graph has them, in which they are arguments."""
    mask = (*blocks(packed, B).as_tuple()[:-1], lambda b, h, q, k, rows: rows[b, q] == rows[b, k])
    with run_eagerly(), torch.no_grad():
        step = lambda _tracker: operator(*tensors(), lambda score, *_: score, mask, 1.0, {}, (), (ROWS,))  # noqa: E731
        assert count_step(nn.Identity(), step).total().model == 4 * D * H * (25 + 25 + 100)


@pytest.mark.parametrize("where", ["fake", "meta"])
def test_tensors_without_numbers_drop_nothing(where: str) -> None:
    if where == "meta":
        query, key, _ = (each.to("meta") for each in tensors())
        assert flex_pairs(query, key, blocks(causal).as_tuple()) == Pairs(B * H * L * L, B * H * L * L)
        return
    with FakeTensorMode():
        total = infer(*tensors(), block_mask=blocks(causal)).total()
    assert total.model == total.hardware == 4 * D * B * H * L * L


def test_empty_rows_have_no_pairs() -> None:
    query, key, _ = tensors()
    assert flex_pairs(query[:0], key[:0], blocks(causal).as_tuple()) == Pairs(0, 0)
