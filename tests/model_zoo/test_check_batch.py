"""A batch that does not fit its schema or model is refused by name; a table would read the next field's rows for it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mfu_kernels.errors import InvalidArgument
from mfu_models import MODELS
from mfu_models.batch import Batch
from mfu_models.common.check_batch import check_batch
from tests.model_zoo.random_batch import random_batch

SCHEMA = MODELS["kunlun"].config("tiny").schema
LENGTHS = {"clicks": [3, 0], "impressions": [0, 4]}
MAX_LENGTHS = {"clicks": 3, "impressions": 4}


def _with_id(part: str, value: int) -> Callable[[Batch], Batch]:
    def change(batch: Batch) -> Batch:
        if part == "sparse":
            return replace(batch, sparse=batch.sparse.index_fill(1, torch.tensor([2]), value))
        if part == "candidate":
            return replace(batch, candidate_items=torch.full_like(batch.candidate_items, value))
        clicks = batch.sequences["clicks"]
        clicks = replace(clicks, side_ids=clicks.side_ids.index_fill(1, torch.tensor([1]), value))
        return replace(batch, sequences={**batch.sequences, "clicks": clicks})

    return change


def test_a_batch_that_fits_passes() -> None:
    check_batch(random_batch(SCHEMA, LENGTHS), SCHEMA, MAX_LENGTHS)
    check_batch(random_batch(SCHEMA, {"clicks": [0], "impressions": [0]}), SCHEMA, MAX_LENGTHS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_id("sparse", 1_000), "'sparse_2' has the id 1000; allowed: 0 to 999"),
        (_with_id("sparse", -1), "'sparse_2' has the id -1; allowed: 0 to 999"),
        (_with_id("candidate", SCHEMA.item.vocab), f"candidates: field 'item' has the id {SCHEMA.item.vocab}"),
        (_with_id("clicks", 16), "clicks: field 'action' has the id 16; allowed: 0 to 15"),
    ],
)
def test_ids_beyond_the_vocabulary(change: Callable[[Batch], Batch], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check_batch(change(random_batch(SCHEMA, LENGTHS)), SCHEMA, MAX_LENGTHS)


def test_a_history_longer_than_the_models_maximum() -> None:
    with pytest.raises(InvalidArgument, match="a history of impressions has 4 events; allowed: at most 3"):
        check_batch(random_batch(SCHEMA, LENGTHS), SCHEMA, {"clicks": 3, "impressions": 3})
