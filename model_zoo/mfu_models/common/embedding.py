"""Embedding tables: of the context fields, and of events and the candidate."""

import torch
from torch import Tensor, nn

from mfu_models.batch import EventSequence, Schema


def _table(vocab: int, width: int) -> nn.Embedding:
    """A table with row-sparse gradients, as production tables have: a step touches only the rows of its batch."""
    table = nn.Embedding(vocab, width, sparse=True)
    if table.weight.device.type != "meta":
        nn.init.normal_(table.weight, std=width**-0.5)
    return table


class FieldEmbedding(nn.Module):
    """Each sparse field becomes one token: ids [B, F] -> [B, F, d]."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(_table(field.vocab, width) for field in schema.sparse)

    def forward(self, ids: Tensor) -> Tensor:
        """``ids`` int64 [B, F] -> [B, F, d]."""
        return torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)


class EventEmbedding(nn.Module):
    """An event as its item's and its side ids' embeddings side by side: [T] -> [T, e]."""

    def __init__(self, schema: Schema, item_width: int, side_width: int) -> None:
        super().__init__()
        self.item = _table(schema.item.vocab, item_width)
        self.sides = nn.ModuleList(_table(side.vocab, side_width) for side in schema.sides)
        self.width = item_width + side_width * len(schema.sides)

    def forward(self, item_ids: Tensor, side_ids: Tensor) -> Tensor:
        """``item_ids`` [T] and ``side_ids`` [T, num_sides] -> [T, e]."""
        parts = [self.item(item_ids)] + [table(side_ids[:, i]) for i, table in enumerate(self.sides)]
        return torch.cat(parts, dim=-1)

    def of(self, sequence: EventSequence) -> Tensor:
        """Every event of ``sequence``."""
        embedded: Tensor = self(sequence.item_ids, sequence.side_ids)
        return embedded
