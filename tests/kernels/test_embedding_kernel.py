"""The kernels of the embedding beyond their numeric contract: long runs, ids outside, the library boundary."""

from functools import partial

import pytest
import torch
from torch import Tensor, library

from mfu_kernels import InvalidArgument, UnsupportedImpl, embedding
from mfu_kernels.embedding import boundary
from mfu_kernels.limits import MAX_ROW_WIDTH
from tests.kernels.cases import offsets_of
from tests.kernels.running import COMPILES, DEVICE, RUNS_KERNELS, draw, output_and_gradients

pytestmark = RUNS_KERNELS
OFFSETS = torch.tensor([0, 5, 8], device=DEVICE)


def ids_of(*events: tuple[int, ...]) -> Tensor:
    return torch.tensor(events, device=DEVICE)


IDS = ids_of((0, 2), (4, 0), (0, 1), (0, 2), (3, 2))


def assert_equals_reference(weight: Tensor, ids: Tensor, vocabs: tuple[int, ...]) -> None:
    run = partial(embedding, ids=ids, offsets=offsets_of(vocabs).to(DEVICE))
    actual, expected = (output_and_gradients(run, {"weight": weight}, impl=impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(actual, expected)


def test_library_operators_are_what_they_say() -> None:
    weight = draw(8, 12)
    library.opcheck(torch.ops.mfubench.embedding_fwd, (weight, IDS, OFFSETS))
    library.opcheck(torch.ops.mfubench.embedding_bwd, (draw(5, 2, 12), IDS, OFFSETS, 8))


@COMPILES
def test_compiled_in_one_graph_equals_eager() -> None:
    torch._dynamo.reset()

    def run(weight: Tensor) -> Tensor:
        return embedding(weight, IDS, OFFSETS, impl="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    actual, expected = (output_and_gradients(each, {"weight": draw(8, 12)}) for each in (compiled, run))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_without_a_gradient_nothing_is_kept() -> None:
    out = embedding(draw(8, 12), IDS, OFFSETS, impl="triton")
    assert not out.requires_grad and torch.equal(out, embedding(draw(8, 12), IDS, OFFSETS, impl="reference"))


def test_a_row_of_more_chunks_than_are_joined_at_once() -> None:
    ids = torch.zeros(8 * 70, 1, dtype=torch.int64, device=DEVICE)  # 70 chunks; of 64 parts the default joins
    ids[::100] = torch.arange(6, device=DEVICE)[:, None] % 2
    assert_equals_reference(draw(3, 4), ids, (3,))


def test_chunks_that_end_with_a_row() -> None:
    ids = torch.arange(4, device=DEVICE).repeat_interleave(8)[:, None]  # each row fills one chunk
    assert_equals_reference(draw(6, 12), ids.flip(0), (6,))
    assert_equals_reference(draw(6, 12), (ids // 2).flip(0), (6,))


def test_a_row_wider_than_one_program_adds_up() -> None:
    assert_equals_reference(draw(8, 1100), IDS, (5, 3))


@pytest.mark.parametrize("rows", [65_534, 65_535], ids=["keys of two bytes", "keys of four"])
def test_as_many_rows_as_a_key_can_name(rows: int) -> None:
    vocabs = (rows - 3, 3)
    assert_equals_reference(draw(rows, 2), ids_of((rows - 4, 2), (0, 0), (rows - 4, 1), (32_767, 2)), vocabs)


def test_gradients_that_are_views() -> None:
    weight = draw(8, 12).requires_grad_()
    out = embedding(weight, IDS, OFFSETS, impl="triton")
    for grad in (
        draw(5, 1, 12).expand(5, 2, 12),  # of a sum over fields
        draw(2, 5, 12).transpose(0, 1),
        draw(5, 2, 24)[:, :, 12:],
        draw(12, 2, 5).permute(2, 1, 0),
        torch.ones((), device=DEVICE).expand(5, 2, 12),
    ):
        expected = torch.zeros_like(weight).index_add(0, (IDS + OFFSETS[:-1]).flatten(), grad.reshape(10, 12))
        torch.testing.assert_close(torch.autograd.grad(out, weight, grad, retain_graph=True), (expected,))


def test_an_id_that_is_none_of_its_fields_gives_nan_and_moves_no_row() -> None:
    """Below the public function, which names such ids on a CPU, and nowhere else."""
    weight = draw(8, 12)
    ids = ids_of((0, 3), (5, 2), (-1, -1), (2**40, -(2**40)), (4, 0))  # 3 and 5 are rows, but of no such field
    known = ids_of((1, 0), (0, 1), (0, 0), (0, 0), (1, 1)).bool()
    out = torch.ops.mfubench.embedding_fwd(weight, ids, OFFSETS)
    assert torch.equal(out.isnan(), ~known[:, :, None].expand_as(out))
    rows = (ids + OFFSETS[:-1])[known]
    assert torch.equal(out[known], weight[rows])
    grad = draw(5, 2, 12)
    expected = torch.zeros_like(weight).index_add(0, rows, grad[known])
    torch.testing.assert_close(torch.ops.mfubench.embedding_bwd(grad, ids, OFFSETS, 8), expected)


def test_what_kernels_do_not_take_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UnsupportedImpl, match=r"^embedding: impl='triton' takes .*; weight is torch.float64; use impl="
    ):
        embedding(draw(8, 12).double(), IDS, OFFSETS, impl="triton")
    with pytest.raises(InvalidArgument, match=rf"^embedding: the row width is {MAX_ROW_WIDTH + 1}; allowed: at most"):
        embedding(draw(8, MAX_ROW_WIDTH + 1), IDS, OFFSETS, impl="triton")
    monkeypatch.setattr(boundary, "MAX_LOOKUPS", 9)
    with pytest.raises(InvalidArgument, match=r"^embedding: the number of ids is 10; allowed: at most 9 with impl='tr"):
        embedding(draw(8, 12), IDS, OFFSETS, impl="triton")
