"""Embedding tables: of the context fields, and of events and the candidate."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.registry import Impl
from mfu_models.batch import EventSequence, Field, Schema

MAX_DENSE_ROWS = 65_536  # fewer than the events of a usual batch


class FusedTable(nn.Embedding):
    """The tables of several fields as one, so that one look-up serves all: ids [N, F] -> [N, F, width].

    Gradients are row-sparse, as in production: a step touches only the rows of its batch. A table of few rows is
    touched nearly everywhere, each row by thousands of events whose gradients would be kept apart: its gradient is
    dense, and under autocast its rows are of autocast's dtype. Each column's ids must lie in its own field's
    vocabulary; the next field's rows begin behind it.
    """

    offsets: Tensor

    def __init__(self, fields: Sequence[Field], width: int, impl: Impl = "auto") -> None:
        vocabs = tuple(field.vocab for field in fields)
        super().__init__(sum(vocabs), width, sparse=sum(vocabs) > MAX_DENSE_ROWS)
        self.vocabs, self.impl = vocabs, impl
        self.register_buffer("offsets", torch.tensor([0, *accumulate(vocabs)]), persistent=False)

    def reset_parameters(self) -> None:
        """Rows of unit length on average, so that a field's token is as large as any other."""
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """``ids`` int64 [N, F] -> [N, F, width]."""
        if self.sparse:
            rows: Tensor = super().forward(ids + self.offsets[:-1])
            return rows
        weight, device = self.weight, self.weight.device.type
        if torch.is_autocast_enabled(device):  # as the product that follows takes it
            weight = weight.to(torch.get_autocast_dtype(device))
        return ops.embedding(weight, ids, self.offsets, vocabs=self.vocabs, impl=self.impl)


class FieldEmbedding(FusedTable):
    """Each sparse field becomes one token: ids [B, F] -> [B, F, d]."""

    def __init__(self, schema: Schema, width: int, impl: Impl = "auto") -> None:
        super().__init__(schema.sparse, width, impl)


class EventEmbedding(nn.Module):
    """An event as its item's and its side ids' embeddings side by side: [T] -> [T, e].

    Where all are equally wide, they are one table: what is looked up lies side by side already, and is not copied.
    """

    def __init__(self, schema: Schema, item_width: int, side_width: int, impl: Impl = "auto") -> None:
        super().__init__()
        one = item_width == side_width or not schema.sides
        fields = [[schema.item, *schema.sides]] if one else [[schema.item], schema.sides]
        self.tables = nn.ModuleList(
            FusedTable(group, width, impl) for group, width in zip(fields, (item_width, side_width), strict=False)
        )
        self.width = item_width + side_width * len(schema.sides)

    def forward(self, item_ids: Tensor, side_ids: Tensor) -> Tensor:
        """``item_ids`` [T] and ``side_ids`` [T, num_sides] -> [T, e]."""
        ids = [item_ids.unsqueeze(1), side_ids]
        if len(self.tables) == 1:
            ids = [torch.cat(ids, dim=1)]
        parts = [table(group).flatten(1) for table, group in zip(self.tables, ids, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def of(self, sequence: EventSequence) -> Tensor:
        """Every event of ``sequence``."""
        embedded: Tensor = self(sequence.item_ids, sequence.side_ids)
        return embedded


def event_embedding(schema: Schema, width: int, impl: Impl) -> EventEmbedding:
    """An event's ids side by side, ``width`` wide together: the sides share one half, the item has the other."""
    sides = len(schema.sides)
    side_width = width // (2 * sides) if sides else 0
    return EventEmbedding(schema, width - sides * side_width, side_width, impl)
