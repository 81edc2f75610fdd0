"""Wukong's sizes and switches (arXiv 2403.02545)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mfu_models.batch import Schema
from mfu_models.common.config import require, synthetic_schema
from mfu_models.common.pooled_tokens import num_pooled_tokens
from mfu_models.common.wukong import BlockShape


@dataclass(frozen=True, slots=True)
class WukongConfig:
    """A Wukong: d ``width``, n_F ``num_fm``, n_L ``num_linear``, k ``fm_rank``, c ``y_tokens``; MLPs: hidden widths."""

    schema: Schema
    max_length: int
    width: int
    num_layers: int
    num_fm: int
    num_linear: int
    fm_rank: int
    fm_mlp: tuple[int, ...]
    head_mlp: tuple[int, ...]
    dense_mlp: tuple[int, ...] = (512, 256)
    y: Literal["attentive", "fixed"] = "attentive"
    y_tokens: int = 1  # what attentive Y compresses the tokens to; the paper gives no number

    def __post_init__(self) -> None:
        for field in ("max_length", "num_layers", "num_fm", "num_linear", "fm_rank", "y_tokens"):
            require(getattr(self, field) >= 1, f"{field}={getattr(self, field)}; allowed: at least 1")
        for field in ("fm_mlp", "head_mlp", "dense_mlp"):
            widths = getattr(self, field)
            require(all(width >= 1 for width in widths), f"{field}={widths}; allowed: widths of at least 1")
        least = max(2, 2 * len(self.schema.sides))
        require(self.width >= least, f"width={self.width}; allowed: at least {least}, to hold an event's ids")
        allowed = ("attentive", "fixed")
        require(self.y in allowed, f"y={self.y!r}; allowed: {', '.join(allowed)}")
        require(bool(self.schema.sequences), f"source {self.schema.source} has no event sequence; wukong needs one")

    @property
    def blocks(self) -> tuple[BlockShape, ...]:
        """The layers' shapes: the first works on n_0 tokens, the others on n_F + n_L."""
        tokens = [num_pooled_tokens(self.schema)] + [self.num_fm + self.num_linear] * (self.num_layers - 1)
        y_tokens = self.y_tokens if self.y == "attentive" else 0
        own = (self.width, self.num_fm, self.num_linear, self.fm_rank, self.fm_mlp, y_tokens)
        return tuple(BlockShape(count, *own) for count in tokens)

    @property
    def head_widths(self) -> tuple[int, ...]:
        """All widths of the MLP on the last layer's flattened tokens."""
        return ((self.num_fm + self.num_linear) * self.width, *self.head_mlp, 1)


# max_length, width, num_layers, num_fm, num_linear, fm_rank, fm_mlp, head_mlp
_SIZES = {
    "tiny": (32, 32, 2, 4, 4, 4, (64,), (64, 32)),
    "small": (128, 64, 2, 8, 8, 8, (256, 256), (256, 128)),
    "base": (256, 128, 4, 24, 24, 24, (1024, 1024), (512, 256)),
    "large": (512, 160, 8, 48, 48, 48, (4096, 4096), (512, 256)),
    "xl": (1024, 160, 8, 96, 96, 96, (8192, 8192), (512, 256)),
}
SCHEMAS: Mapping[str, Schema] = {
    "tiny": synthetic_schema(7, 1_000),
    "small": synthetic_schema(17, 10_000),
    "base": synthetic_schema(37, 20_000),
    "large": synthetic_schema(157, 50_000),
    "xl": synthetic_schema(715, 50_000, 2, 2),
}
"""The zoo's histories, and as many fields as give the n_0 = 10, 20, 40, 160 and 720 tokens of the sizes."""


def _config(size: str, schema: Schema) -> WukongConfig:
    return WukongConfig(schema, *_SIZES[size])


SIZES: Mapping[str, Callable[[Schema], WukongConfig]] = {size: partial(_config, size) for size in _SIZES}
