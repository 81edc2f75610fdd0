"""The input of models without a sequence module: one token for the dense features, each field and each history."""

from typing import Literal

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.registry import Impl
from mfu_models.batch import Batch, Schema

from .embedding import FieldEmbedding, event_embedding
from .layers import DenseToken


def num_pooled_tokens(schema: Schema) -> int:
    """Tokens of `PooledTokens`: 1 + F + K."""
    return 1 + len(schema.sparse) + len(schema.sequences)


class PooledTokens(nn.Module):
    """[MLP(dense) | field embeddings | pooled histories]: [B, 1 + F + K, d].

    An event is its item's and its side ids' embeddings side by side, d wide together, so that pooling needs no matrix.
    All histories share these tables; fields have their own. The candidate's item is read where it is a field.
    """

    def __init__(
        self,
        schema: Schema,
        width: int,
        dense_mlp: tuple[int, ...],
        *,
        pooling: Literal["mean", "sum"] = "mean",
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        self.dense = DenseToken((len(schema.dense), *dense_mlp, width))
        self.fields = FieldEmbedding(schema, width, impl)
        self.events = event_embedding(schema, width, impl)
        self.names = [sequence.name for sequence in schema.sequences]
        self.pooling: Literal["mean", "sum"] = pooling
        self.impl: Impl = impl

    def forward(self, batch: Batch) -> Tensor:
        """Tokens [B, 1 + F + K, d] of a batch of impressions."""
        histories = torch.stack([self._pooled(batch, name) for name in self.names], dim=1)
        return torch.cat([self.dense(batch.dense).unsqueeze(1), self.fields(batch.sparse), histories], dim=1)

    def _pooled(self, batch: Batch, name: str) -> Tensor:
        sequence = batch.sequences[name]
        events = self.events.of(sequence)
        return ops.jagged_pool(
            events, sequence.offsets, mode=self.pooling, max_length=sequence.max_length, impl=self.impl
        )
