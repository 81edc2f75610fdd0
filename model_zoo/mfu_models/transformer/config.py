"""The baseline's sizes and switches (BST, arXiv 1905.06874; SASRec, arXiv 1808.09781)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mfu_models.batch import Schema, SequenceField
from mfu_models.common.config import require, require_sizes
from mfu_models.common.requests import history_of, require_history


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
    norm_order: Literal["post", "pre"] = "post"  # BST's is post, SASRec's pre
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
        require_history(self.schema, "transformer")

    @property
    def history(self) -> SequenceField:
        """The one sequence that it reads: all events where the source has them, else its first sequence."""
        return history_of(self.schema)


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
