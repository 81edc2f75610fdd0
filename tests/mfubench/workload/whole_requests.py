"""The smallest model that scores whole requests, for the tests of what prepares and measures such models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

import mfu_kernels as ops
from mfu_models import ModelSpec
from mfu_models.batch import Batch, Schema
from mfu_models.common.config import require
from mfu_models.common.embedding import EventEmbedding
from mfu_models.common.flops import FlopCount, linear

WIDTH = 8


@dataclass(frozen=True, slots=True)
class Config:
    """Reads the schema's first sequence."""

    schema: Schema
    max_length: int = 16
    num_candidates: int = 4

    def __post_init__(self) -> None:
        require(self.num_candidates >= 1, f"num_candidates={self.num_candidates}; allowed: at least 1")


class Ranker(nn.Module):
    """The candidate's inner product with the mean of the history, which is mapped once a request."""

    def __init__(self, config: Config, impl: str) -> None:
        super().__init__()
        self.config = config
        self.events = EventEmbedding(config.schema, WIDTH, WIDTH)
        self.user = nn.Linear(self.events.width, WIDTH)
        self.item = nn.Linear(self.events.width, WIDTH)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B*m]."""
        assert batch.num_candidates == self.config.num_candidates
        sequence = batch.sequences[self.config.schema.sequences[0].name]
        pooled = ops.jagged_pool(
            self.events.of(sequence), sequence.offsets, max_length=sequence.max_length, impl="reference"
        )
        users = self.user(pooled).repeat_interleave(batch.num_candidates, dim=0)
        logits: Tensor = (users * self.item(self.events(batch.candidate_items, batch.candidate_sides))).sum(-1)
        return logits


def model_flops(config: Config, lengths: Mapping[str, Sequence[int]]) -> FlopCount:
    """One map a request, and one a candidate; both inputs are learnt."""
    rows = len(next(iter(lengths.values()))) * (1 + config.num_candidates)
    fwd = linear(rows, (1 + len(config.schema.sides)) * WIDTH, WIDTH)
    return FlopCount(fwd, 2 * fwd)


SPEC = ModelSpec(
    name="whole_requests",
    summary="scores whole requests",
    sizes={"tiny": Config},
    model_flops=model_flops,
    max_lengths=lambda config: {config.schema.sequences[0].name: config.max_length},
    module=f"{__name__}:Ranker",
    request_level=True,
)
