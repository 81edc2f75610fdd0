"""Embedding beyond the contract."""

import pytest
import torch

from mfu_kernels import InvalidArgument, embedding
from mfu_kernels.embedding import op
from mfu_kernels.embedding.reference import SPREAD_ROWS
from mfu_kernels.jagged import trusted_offsets
from tests.kernels.cases import cost_of, offsets_of


def table(rows: int, width: int = 4) -> torch.Tensor:
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def test_a_fields_rows_begin_behind_those_of_the_field_before() -> None:
    weight = torch.arange(10.0)[:, None]
    rows = embedding(weight, torch.tensor([[0, 0, 0], [4, 0, 3]]), offsets_of([5, 1, 4]))
    assert rows.squeeze(2).tolist() == [[0, 5, 6], [4, 5, 9]]


def test_copies_of_few_rows_change_neither_what_is_looked_up_nor_the_gradient() -> None:
    vocabs = (SPREAD_ROWS + 100, 16, 300)
    weight, other = table(sum(vocabs)), table(sum(vocabs))
    ids = torch.stack([torch.randint(vocab, (2_000,)) for vocab in vocabs], dim=1)
    rows = embedding(weight, ids, offsets_of(vocabs), vocabs=vocabs)
    with torch.no_grad():
        assert torch.equal(rows, embedding(weight, ids, offsets_of(vocabs)))
    weights = torch.randn_like(rows)
    (rows * weights).sum().backward()
    (torch.nn.functional.embedding(ids + offsets_of(vocabs)[:-1], other) * weights).sum().backward()
    torch.testing.assert_close(weight.grad, other.grad)


def test_of_a_large_table_no_more_is_read_than_a_row_for_each_id() -> None:
    weight, ids, offsets = table(1_000), torch.zeros(7, 2, dtype=torch.int64), offsets_of([600, 400])
    cost = cost_of(lambda: embedding(weight, ids, offsets))
    rows, numbers = 14 * 4 * 8, ids.nbytes + offsets.nbytes
    assert cost.fwd.bytes == numbers + 2 * rows
    assert cost.bwd.bytes == numbers + rows + weight.nbytes  # a dense gradient is written whole


@pytest.mark.parametrize(("wrong", "field"), [([[0, 3]], 1), ([[-1, 0]], 0), ([[0, 0], [5, 0]], 0)], ids=str)
def test_ids_outside_their_fields_vocabulary_are_named_on_a_cpu(wrong: list[list[int]], field: int) -> None:
    value, allowed = max((row[field] for row in wrong), key=abs), (4, 2)[field]
    message = f"^embedding: an id of field {field} is {value}; allowed: 0 to {allowed}$"
    with pytest.raises(InvalidArgument, match=message):
        embedding(table(8), torch.tensor(wrong), offsets_of([5, 3]))


def test_ids_of_a_batch_that_was_checked_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "_check_numbers", lambda *given: pytest.fail("read"))
    with trusted_offsets():
        embedding(table(8), torch.zeros(3, 2, dtype=torch.int64), offsets_of([5, 3]))


@pytest.mark.parametrize(
    ("vocabs", "allowed"),
    [
        ((8,), "F = 2 numbers that add up to R = 8"),
        ((5, 2), "F = 2 numbers that add up to R = 8"),
        ((9, -1), "F = 2 numbers that add up to R = 8"),
        ((4, 4), r"\[5, 3\], as offsets have them"),
    ],
    ids=str,
)
def test_vocabularies_that_do_not_make_the_table(vocabs: tuple[int, ...], allowed: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"vocabs is \[.*\]; allowed: {allowed}$"):
        embedding(table(8), torch.zeros(3, 2, dtype=torch.int64), offsets_of([5, 3]), vocabs=vocabs)


@pytest.mark.parametrize("counts", [[8], [5, 2], [5, -1, 4], [5, 1, 2]], ids=str)
def test_offsets_that_do_not_make_the_table(counts: list[int]) -> None:
    with pytest.raises(InvalidArgument, match=r"^embedding: offsets is .*; allowed: "):
        embedding(table(8), torch.zeros(3, 2, dtype=torch.int64), offsets_of(counts))


def test_a_field_without_rows_has_no_ids() -> None:
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    weight = table(5)
    embedding(weight, nothing, offsets_of([5, 0])).sum().backward()
    assert weight.grad is not None and not weight.grad.any()
    with pytest.raises(InvalidArgument, match="an id of field 1 is 0; allowed: 0 to -1"):
        embedding(weight, torch.zeros(1, 2, dtype=torch.int64), offsets_of([5, 0]))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(3, 2), "of dtype torch.float32; allowed: torch.int32 or torch.int64"),
        (torch.zeros(6, dtype=torch.int64), r"of shape \[6\]; allowed: \[T, F\]"),
        (torch.zeros(3, 2, dtype=torch.int64, device="meta"), "on meta; allowed: cpu"),
    ],
    ids=["dtype", "shape", "device"],
)
def test_bad_ids(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^embedding: ids is {message}"):
        embedding(table(8), ids, offsets_of([5, 3]))
