"""What holds for every model: a score depends on all of its own sample and on nothing else."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mfu_models.batch import Field
from mfu_models.common.embedding import FieldEmbedding
from tests.model_zoo.loops import ops_as_loops
from tests.model_zoo.settings import KUNLUN, TRANSFORMER, batch_of, built, in_every_setting, name_of, take
from tests.model_zoo.watching import SAMPLES, assert_close, assert_differ, change, scores

pytestmark = pytest.mark.usefixtures("in_fp64")


@in_every_setting
def test_a_sample_scores_the_same_alone_in_loops_as_in_the_batch(config: Any) -> None:
    """Padding, or another sample of the batch, leaks into a score; or an op's mask is not what its loop says."""
    model, batch = built(config), batch_of(config, SAMPLES)
    with ops_as_loops():
        alone = torch.cat([scores(model, take(batch, [i])) for i in range(len(SAMPLES))])
    assert_close(scores(model, batch), alone)
    assert_differ(alone.max(), alone.min())


@in_every_setting
def test_the_order_of_samples_is_the_order_of_scores(config: Any) -> None:
    """A score belongs to another sample."""
    model, batch, order = built(config), batch_of(config, SAMPLES), [5, 2, 0, 4, 1, 3]
    assert_close(scores(model, take(batch, order)), scores(model, batch)[order])


@pytest.mark.parametrize("config", [KUNLUN, TRANSFORMER], ids=name_of)
def test_every_feature_reaches_the_score(config: Any) -> None:
    """A context field, a side id or an item is read by nothing."""
    model, batch = built(config), batch_of(config, [(7, 6)] * 2)
    before = scores(model, batch)

    def other_ids(ids: Tensor, column: int) -> Tensor:
        ids = ids.clone()
        ids[:, column] = (ids[:, column] + 1) % 7
        return ids

    for column in range(len(config.schema.sparse)):
        assert_differ(scores(model, replace(batch, sparse=other_ids(batch.sparse, column))), before)
    assert_differ(scores(model, replace(batch, dense=batch.dense + 1)), before)
    events = batch.sequences["views"]
    assert_differ(scores(model, change(batch, "views", item_ids=(events.item_ids + 1) % 50)), before)
    for column in range(len(config.schema.sides)):
        assert_differ(scores(model, change(batch, "views", side_ids=other_ids(events.side_ids, column))), before)


def test_each_field_has_rows_of_its_own() -> None:
    """Fields that share a table would share embeddings, where one's id is the other's."""
    schema = replace(KUNLUN.schema, sparse=(Field("a", 2), Field("b", 4), Field("c", 3)))
    table = FieldEmbedding(schema, 5)
    every_id = torch.cartesian_prod(*(torch.arange(field.vocab) for field in schema.sparse))
    columns = table(every_id).unbind(1)
    found = [column.unique(dim=0) for column in columns]
    assert [len(rows) for rows in found] == [2, 4, 3]
    assert len(torch.cat(found).unique(dim=0)) == 9 == sum(p.shape[0] for p in table.parameters())
