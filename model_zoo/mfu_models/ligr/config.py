"""LiGR's sizes and switches (arXiv 2502.03417)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from mfu_models.batch import Schema, SequenceField
from mfu_models.common.config import require
from mfu_models.common.requests import history_of, require_history, require_width


@dataclass(frozen=True, slots=True)
class LigrConfig:
    """A LiGR: T ``max_length``, m ``num_candidates``, d ``width``, r ``expansion``."""

    schema: Schema
    max_length: int
    num_candidates: int
    width: int
    num_layers: int
    num_heads: int
    expansion: int
    head_mlp: tuple[int, ...]
    gate: bool = True
    set_wise: bool = True

    def __post_init__(self) -> None:
        for field in ("max_length", "num_candidates", "width", "num_layers", "num_heads", "expansion"):
            require(getattr(self, field) >= 1, f"{field}={getattr(self, field)}; allowed: at least 1")
        heads = self.num_heads
        require(self.width % heads == 0, f"width={self.width}; allowed: a multiple of num_heads={heads}")
        require(all(width >= 1 for width in self.head_mlp), f"head_mlp={self.head_mlp}; allowed: widths of at least 1")
        require_history(self.schema, "ligr")
        require_width(self.schema, self.width)

    @property
    def history(self) -> SequenceField:
        """The one sequence that it reads."""
        return history_of(self.schema)


# max_length, num_candidates, width, num_layers, num_heads, expansion, head_mlp
_SIZES = {
    "tiny": (32, 4, 32, 2, 2, 4, (16,)),
    "small": (128, 16, 64, 4, 2, 4, (64,)),
    "base": (256, 32, 128, 6, 2, 4, (256,)),
    "large": (256, 64, 192, 16, 3, 4, (512,)),
    "xl": (1024, 256, 256, 16, 4, 4, (512,)),
}


def _config(size: str, schema: Schema) -> LigrConfig:
    return LigrConfig(schema, *_SIZES[size])


SIZES: Mapping[str, Callable[[Schema], LigrConfig]] = {size: partial(_config, size) for size in _SIZES}
