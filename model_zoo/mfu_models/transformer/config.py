"""The baseline's sizes and switches (BST, arXiv 1905.06874; SASRec, arXiv 1808.09781)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mfu_models.batch import Schema, SequenceField
from mfu_models.common.config import require, require_sizes


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """A transformer over one history and its candidate: T ``max_length``, d ``width``, r ``expansion``."""

    schema: Schema
    max_length: int
    width: int
    num_layers: int
    num_heads: int
    expansion: int
    head_mlp: tuple[int, ...]
    norm_order: Literal["post", "pre"] = "post"  # BST and SASRec have post-norm; pre-norm is the later choice
    causal: bool = False  # BST attends both ways, SASRec only back

    def __post_init__(self) -> None:
        require_sizes(self, "max_length", "width", "num_layers", "num_heads", "expansion", "head_mlp")
        heads = self.num_heads
        require(self.width % heads == 0, f"width={self.width}; allowed: a multiple of num_heads={heads}")
        sides = len(self.schema.sides)
        require(sides > 0, f"source {self.schema.source} has no side ids; transformer needs one")
        require(
            self.width % sides == 0, f"width={self.width}; allowed: a multiple of {sides}, the side ids of an event"
        )
        require(
            bool(self.schema.sequences), f"source {self.schema.source} has no event sequence; transformer needs one"
        )

    @property
    def history(self) -> SequenceField:
        """The one sequence that it reads: all events where the source has them, else its first sequence."""
        sequences = self.schema.sequences
        return next((sequence for sequence in sequences if sequence.kind == "exposure"), sequences[0])

    @property
    def num_context_tokens(self) -> int:
        """One for each sparse field and one for the dense features."""
        return len(self.schema.sparse) + 1


def max_lengths(config: TransformerConfig) -> dict[str, int]:
    """The most events that its one sequence keeps."""
    return {config.history.name: config.max_length}


# max_length, width, num_layers, num_heads, expansion, head_mlp
_SIZES = {
    "tiny": (32, 32, 1, 2, 4, (64, 32)),
    "small": (128, 64, 2, 4, 4, (256, 128)),
    "base": (256, 192, 4, 3, 4, (512, 256)),
    "large": (512, 256, 6, 4, 4, (1024, 512, 256)),
    "xl": (1024, 512, 8, 8, 4, (2048, 1024, 512)),
}


def _config(size: str, schema: Schema) -> TransformerConfig:
    return TransformerConfig(schema, *_SIZES[size])


SIZES: Mapping[str, Callable[[Schema], TransformerConfig]] = {size: partial(_config, size) for size in _SIZES}
