"""A table's gradient is row-sparse where the table is large, and dense where a batch touches nearly all of it."""

import pytest
import torch

from mfu_models.batch import Field, Schema
from mfu_models.common.embedding import MAX_DENSE_ROWS, EventEmbedding, FusedTable


@pytest.mark.parametrize("rows", [MAX_DENSE_ROWS, MAX_DENSE_ROWS + 1])
def test_the_gradient_of_a_small_table_is_dense_and_that_of_a_large_one_sparse(rows: int) -> None:
    table = FusedTable([Field("a", 7), Field("b", rows - 7)], 2)
    table(torch.tensor([[3, 5], [3, 0]])).sum().backward()
    gradient = table.weight.grad
    assert gradient is not None and gradient.is_sparse == (rows > MAX_DENSE_ROWS)
    dense = gradient.to_dense()
    assert torch.equal(dense[[3, 7, 12]], torch.tensor([[2.0, 2.0], [1.0, 1.0], [1.0, 1.0]])) and dense.sum() == 8


def test_under_autocast_small_tables_are_looked_up_in_its_dtype() -> None:
    table, ids = FusedTable([Field("a", 7)], 4), torch.tensor([[3], [5]])
    with torch.autocast("cpu", torch.bfloat16):
        rows = table(ids)
    assert rows.dtype == torch.bfloat16
    rows.sum().backward()
    assert table.weight.grad is not None and table.weight.grad.dtype == torch.float32


def test_an_event_without_side_ids_is_its_item() -> None:
    schema = Schema("made up", (), (), Field("item", 9), (), (), "label")
    events = EventEmbedding(schema, 4, 0)
    found = events(torch.tensor([2, 5]), torch.empty(2, 0, dtype=torch.int64))
    assert events.width == 4 and torch.equal(found, events.tables[0].weight[[2, 5]])
