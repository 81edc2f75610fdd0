"""InterFormer's sizes and switches (arXiv 2411.09852).

The paper's public configuration has 4 CLS, 2 PMA and 2 recent tokens, low-rank crosses of rank 32 and a classifier of
1024-512-256-128; its widths and depths are searched for. The sizes are this project's ladder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from mfu_models.batch import Schema
from mfu_models.common.config import SYNTHETIC_SCHEMAS, num_context_tokens, require

Interaction = Literal["dot", "dcn", "dhen"]
Gate = Literal["scale", "printed"]
Order = Literal["sequence_first", "parallel"]


@dataclass(frozen=True, slots=True)
class InterFormerConfig:
    """An InterFormer: T ``max_length``, d ``width``, L ``num_layers``, n_sum ``num_summary``, e ``event_width``.

    S_sum has ``num_cls`` + ``num_pma`` + ``num_recent`` tokens. ``interaction_mlp`` are the hidden widths of the MLP
    after the interaction, whose ``num_cross`` crosses have rank ``cross_rank``.
    """

    schema: Schema
    max_length: int
    width: int
    num_layers: int
    num_heads: int
    num_summary: int
    num_cls: int
    num_pma: int
    num_recent: int
    cross_rank: int
    event_width: int
    interaction_mlp: tuple[int, ...]
    head_mlp: tuple[int, ...]
    num_cross: int = 2
    interaction: Interaction = "dhen"
    # Readings of the paper.
    gate: Gate = "scale"  # x ⊙ σ(W x), as implementations have it, or σ(x ⊙ W x), as printed
    order: Order = "sequence_first"  # see model.py

    def __post_init__(self) -> None:
        counts = ("max_length", "width", "num_layers", "num_heads", "num_summary", "num_cls", "num_pma", "num_recent")
        for field in (*counts, "cross_rank", "event_width", "num_cross"):
            require(getattr(self, field) >= 1, f"{field}={getattr(self, field)}; allowed: at least 1")
        for field in ("interaction_mlp", "head_mlp"):
            widths = getattr(self, field)
            require(all(width >= 1 for width in widths), f"{field}={widths}; allowed: widths of at least 1")
        for field, allowed in (("interaction", Interaction), ("gate", Gate), ("order", Order)):
            value, names = getattr(self, field), get_args(allowed)
            require(value in names, f"{field}={value!r}; allowed: {', '.join(names)}")
        heads, summary, sides = self.num_heads, self.num_summary, 2 * len(self.schema.sides)
        even = f"a multiple of {2 * heads} (num_heads={heads}, even head width for RoPE)"
        require(self.width % (2 * heads) == 0, f"width={self.width}; allowed: {even}")
        require(self.num_cls <= summary, f"num_cls={self.num_cls}; allowed: at most num_summary={summary}")
        require(self.event_width >= sides, f"event_width={self.event_width}; allowed: at least {sides}, 2 a side id")
        require(
            bool(self.schema.sequences), f"source {self.schema.source} has no event sequence; interformer needs one"
        )

    @property
    def side_width(self) -> int:
        """Width of one side id's embedding: all sides together have half of an event, the item has the rest."""
        sides = len(self.schema.sides)
        return self.event_width // (2 * sides) if sides else 0

    @property
    def num_sequence_summary(self) -> int:
        """Tokens of S_sum."""
        return self.num_cls + self.num_pma + self.num_recent

    @property
    def num_interaction_tokens(self) -> int:
        """Tokens that interact: X and S_sum."""
        return num_context_tokens(self.schema) + self.num_sequence_summary

    @property
    def interaction_widths(self) -> tuple[int, ...]:
        """All widths of the MLP after the interaction: tokens (crossed or not) and their products in, X out."""
        tokens, d = self.num_interaction_tokens, self.width
        products = 0 if self.interaction == "dcn" else tokens * (tokens + 1) // 2
        return (products + tokens * d, *self.interaction_mlp, num_context_tokens(self.schema) * d)

    @property
    def num_sequence_summaries(self) -> int:
        """How often the history is summarised: once a layer, and in parallel order once more for the head."""
        return self.num_layers + (self.order == "parallel")


# max_length, width, num_layers, num_heads, num_summary, num_cls, num_pma, num_recent, cross_rank, event_width,
# interaction_mlp, head_mlp. An event is half as wide as the model, so that two sequences side by side are as wide.
_SIZES = {
    "tiny": (32, 32, 2, 2, 4, 2, 1, 1, 8, 16, (64,), (64, 32)),
    "small": (128, 64, 2, 2, 4, 4, 2, 2, 32, 32, (256,), (256, 128)),
    "base": (256, 128, 3, 2, 8, 4, 2, 2, 32, 64, (512,), (1024, 512, 256)),
    "large": (512, 256, 4, 4, 8, 4, 2, 2, 64, 128, (1024,), (1024, 512, 256)),
    "xl": (1024, 512, 4, 8, 16, 8, 4, 4, 128, 256, (2048,), (2048, 1024, 512)),
}

# The largest size has the context fields of `large`: its width is in the layers, not in the input.
SCHEMAS: Mapping[str, Schema] = {size: SYNTHETIC_SCHEMAS["large" if size == "xl" else size] for size in _SIZES}


def _config(size: str, schema: Schema) -> InterFormerConfig:
    return InterFormerConfig(schema, *_SIZES[size])


SIZES: Mapping[str, Callable[[Schema], InterFormerConfig]] = {size: partial(_config, size) for size in _SIZES}
