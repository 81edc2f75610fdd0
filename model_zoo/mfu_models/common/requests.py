"""The input of models that score a request's candidates over one history: which history, and tokens of both."""

import torch
from torch import Tensor, nn

from mfu_kernels.jagged import row_of_each
from mfu_kernels.registry import Impl
from mfu_models.batch import Batch, EventSequence, Schema, SequenceField

from .config import require
from .embedding import FieldEmbedding, event_embedding
from .layers import DenseToken


def history_of(schema: Schema) -> SequenceField:
    """The one sequence that such a model reads: all events where the source has them, else its first sequence."""
    return next((sequence for sequence in schema.sequences if sequence.kind == "exposure"), schema.sequences[0])


def require_history(schema: Schema, model: str) -> None:
    """Refuse a source without event sequences for ``model``."""
    require(bool(schema.sequences), f"source {schema.source} has no event sequence; {model} needs one")


def require_width(schema: Schema, width: int) -> None:
    """Refuse a token ``width`` that is too narrow for an event's ids."""
    least = max(1, 2 * len(schema.sides))
    require(width >= least, f"width={width}; allowed: at least {least}, to hold an event's ids")


def place_table(num_places: int, width: int) -> nn.Embedding:
    """A table of positions or ages, drawn as small as the tables of ids: they are added up."""
    table = nn.Embedding(num_places, width)
    nn.init.normal_(table.weight, std=width**-0.5)
    return table


class CandidateContext(nn.Module):
    """What a candidate has beside its ids: its fields' embeddings summed, plus its dense features mapped to d."""

    def __init__(self, schema: Schema, width: int, impl: Impl) -> None:
        super().__init__()
        self.fields = FieldEmbedding(schema, width, impl)
        self.dense = DenseToken((len(schema.dense), width))
        self.scale = max(1, len(schema.sparse)) ** -0.5

    def forward(self, batch: Batch) -> Tensor:
        """[B*m, d]."""
        context: Tensor = self.dense(batch.dense) + self.scale * self.fields(batch.sparse).sum(dim=1)
        return context


class RequestTokens(nn.Module):
    """A token for each event and each candidate: [item | sides], d wide together, plus its position.

    Positions count back from the request, so that all candidates stand at 0. ``project`` maps [item | sides] by a
    matrix first; ``context`` adds what a candidate has beside its ids to its token.
    """

    def __init__(
        self,
        schema: Schema,
        width: int,
        max_length: int,
        impl: Impl,
        *,
        project: bool = False,
        context: bool = False,
    ) -> None:
        super().__init__()
        self.events = event_embedding(schema, width, impl)
        self.project = nn.Linear(width, width) if project else None
        self.position = place_table(max_length + 1, width)
        self.context = CandidateContext(schema, width, impl) if context else None

    def forward(self, batch: Batch, sequence: EventSequence) -> tuple[Tensor, Tensor]:
        """The tokens of ``sequence``'s events, [T, d], and of the candidates, [B*m, d]."""
        items = torch.cat([sequence.item_ids, batch.candidate_items])
        sides = torch.cat([sequence.side_ids, batch.candidate_sides])
        recency = torch.cat([self._recency(sequence), torch.zeros_like(batch.candidate_items)])
        tokens = self.events(items, sides)
        if self.project is not None:
            tokens = self.project(tokens)
        tokens = tokens + self.position(recency)
        history, candidates = tokens.tensor_split([sequence.item_ids.shape[0]])
        return history, candidates if self.context is None else candidates + self.context(batch)

    def _recency(self, sequence: EventSequence) -> Tensor:
        """How many events back from the request each event lies, from 1 on, int64 [T]; the farthest share a place."""
        offsets, num_events = sequence.offsets, sequence.item_ids.shape[0]
        back = offsets[row_of_each(offsets, num_events) + 1] - torch.arange(num_events, device=offsets.device)
        return back.clamp(max=self.position.num_embeddings - 1)
