"""Sizes and switches of LinkedIn's amortised history modelling (arXiv 2412.06924)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mfu_models.batch import Schema, SequenceField
from mfu_models.common.config import require
from mfu_models.common.requests import history_of, require_history, require_width


@dataclass(frozen=True, slots=True)
class AmortizedHistoryConfig:
    """A history transformer: T ``max_length``, d ``width``, r ``expansion``, m ``num_candidates``."""

    schema: Schema
    max_length: int
    width: int
    num_layers: int
    num_heads: int
    expansion: int
    head_mlp: tuple[int, ...]
    num_candidates: int = 1
    mixing: Literal["append", "concat"] = "append"  # concat: what it replaces, a history pass for each candidate
    causal: bool = False  # whether an event sees later ones is not stated

    def __post_init__(self) -> None:
        for field in ("max_length", "width", "num_layers", "num_heads", "expansion", "num_candidates"):
            require(getattr(self, field) >= 1, f"{field}={getattr(self, field)}; allowed: at least 1")
        heads = self.num_heads
        require(self.width % heads == 0, f"width={self.width}; allowed: a multiple of num_heads={heads}")
        allowed = ("append", "concat")
        require(self.mixing in allowed, f"mixing={self.mixing!r}; allowed: {', '.join(allowed)}")
        require(all(width >= 1 for width in self.head_mlp), f"head_mlp={self.head_mlp}; allowed: widths of at least 1")
        require_history(self.schema, "amortized_history")
        require_width(self.schema, self.width)

    @property
    def history(self) -> SequenceField:
        """The one sequence that it reads."""
        return history_of(self.schema)

    @property
    def token_width(self) -> int:
        """d, or 2 d where every event is joined with the candidate."""
        return 2 * self.width if self.mixing == "concat" else self.width

    @property
    def head_mlp_in(self) -> int:
        """Width of what the head reads: what the history says of the candidate, the dense features, each field."""
        return self.token_width + (1 + len(self.schema.sparse)) * self.width


# max_length, width, num_layers, num_heads, expansion, head_mlp
_SIZES = {
    "tiny": (32, 32, 1, 2, 4, (64, 32)),
    "small": (128, 64, 2, 2, 4, (256, 128)),
    "base": (256, 128, 2, 2, 4, (512, 256)),
    "large": (512, 256, 4, 4, 4, (1024, 512)),
    "xl": (1024, 512, 6, 8, 4, (2048, 1024)),
}


def _config(size: str, schema: Schema) -> AmortizedHistoryConfig:
    return AmortizedHistoryConfig(schema, *_SIZES[size])


SIZES: Mapping[str, Callable[[Schema], AmortizedHistoryConfig]] = {size: partial(_config, size) for size in _SIZES}
