"""Embedding tables: of the context fields, and of events and the candidate."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mfu_models.batch import EventSequence, Field, Schema

MAX_DENSE_ROWS = 65_536  # fewer than the events of a usual batch
SPREAD_ROWS = 8_192  # that a field's events share at least, while gradients are computed


class FusedTable(nn.Embedding):
    """The tables of several fields as one, so that one look-up serves all: ids [N, F] -> [N, F, width].

    Gradients are row-sparse, as in production: a step touches only the rows of its batch. A table of few rows is
    touched nearly everywhere, each row by thousands of events whose gradients would be kept apart: its gradient is
    dense, and under autocast its rows are of autocast's dtype. A GPU sums up each row's gradient in one go, however
    many events there are; so where a field has few rows, each is looked up in copies, by the events in turns. Each
    column's ids must lie in its own field's vocabulary; the next field's rows begin behind it.
    """

    first_rows: Tensor
    first_copies: Tensor
    copies: Tensor

    def __init__(self, fields: Sequence[Field], width: int) -> None:
        rows = [field.vocab for field in fields]
        super().__init__(sum(rows), width, sparse=sum(rows) > MAX_DENSE_ROWS)
        copies = [1 if self.sparse else max(1, SPREAD_ROWS // count) for count in rows]
        self._copied = list(zip(rows, copies, strict=True))
        self.register_buffer("copies", torch.tensor(copies), persistent=False)
        self.register_buffer("first_rows", torch.tensor([0, *rows[:-1]]).cumsum(0), persistent=False)
        spread = [count * times for count, times in self._copied]
        self.register_buffer("first_copies", torch.tensor([0, *spread[:-1]]).cumsum(0), persistent=False)

    def reset_parameters(self) -> None:
        """Rows of unit length on average, so that a field's token is as large as any other."""
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """``ids`` int64 [N, F] -> [N, F, width]."""
        if self.sparse:
            rows: Tensor = super().forward(ids + self.first_rows)
            return rows
        weight, device = self.weight, self.weight.device.type
        if torch.is_autocast_enabled(device):  # as the product that follows takes it
            weight = weight.to(torch.get_autocast_dtype(device))
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return nn.functional.embedding(ids + self.first_rows, weight)
        turn = torch.arange(ids.shape[0], device=ids.device)[:, None] % self.copies
        return nn.functional.embedding(ids * self.copies + turn + self.first_copies, self._with_copies(weight))

    def _with_copies(self, weight: Tensor) -> Tensor:
        """Each field's rows, each as often as its field has copies, one after the other."""
        fields = weight.split([count for count, _ in self._copied])
        return torch.cat(
            [field.repeat_interleave(times, dim=0) for field, (_, times) in zip(fields, self._copied, strict=True)]
        )


class FieldEmbedding(FusedTable):
    """Each sparse field becomes one token: ids [B, F] -> [B, F, d]."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__(schema.sparse, width)


class EventEmbedding(nn.Module):
    """An event as its item's and its side ids' embeddings side by side: [T] -> [T, e].

    Where all are equally wide, they are one table: what is looked up lies side by side already, and is not copied.
    """

    def __init__(self, schema: Schema, item_width: int, side_width: int) -> None:
        super().__init__()
        fields = [[schema.item, *schema.sides]] if item_width == side_width else [[schema.item], schema.sides]
        self.tables = nn.ModuleList(
            FusedTable(group, width) for group, width in zip(fields, (item_width, side_width), strict=False)
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


def event_embedding(schema: Schema, width: int) -> EventEmbedding:
    """An event's ids side by side, ``width`` wide together: the sides share one half, the item has the other."""
    sides = len(schema.sides)
    side_width = width // (2 * sides) if sides else 0
    return EventEmbedding(schema, width - sides * side_width, side_width)
