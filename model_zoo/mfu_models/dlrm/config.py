"""DLRMv2's sizes and switches (DLRM, arXiv 1906.00091; low-rank DCN, arXiv 2008.13535; MLPerf's DLRM-DCNv2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mfu_models.batch import Schema
from mfu_models.common.config import require, synthetic_schema


@dataclass(frozen=True, slots=True)
class DlrmConfig:
    """A DLRMv2: d ``width``, r ``cross_rank``; MLPs: hidden widths; histories keep ``max_length`` events."""

    schema: Schema
    max_length: int
    width: int
    bottom_mlp: tuple[int, ...]
    num_cross: int
    cross_rank: int
    over_mlp: tuple[int, ...]
    pooling: Literal["mean", "sum"] = "mean"  # TorchRec's bags sum by default

    def __post_init__(self) -> None:
        for field in ("max_length", "num_cross", "cross_rank"):
            require(getattr(self, field) >= 1, f"{field}={getattr(self, field)}; allowed: at least 1")
        for field in ("bottom_mlp", "over_mlp"):
            widths = getattr(self, field)
            require(all(width >= 1 for width in widths), f"{field}={widths}; allowed: widths of at least 1")
        least = max(1, 2 * len(self.schema.sides))
        require(self.width >= least, f"width={self.width}; allowed: at least {least}, to hold an event's ids")
        allowed = ("mean", "sum")
        require(self.pooling in allowed, f"pooling={self.pooling!r}; allowed: {', '.join(allowed)}")
        require(bool(self.schema.sequences), f"source {self.schema.source} has no event sequence; dlrm needs one")


# max_length, width, bottom_mlp, num_cross, cross_rank, over_mlp
_SIZES = {
    "tiny": (32, 32, (64,), 1, 16, (64, 32)),
    "small": (128, 64, (256, 128), 2, 64, (512, 256)),
    "base": (256, 128, (512, 256), 3, 512, (1024, 1024, 512, 256)),
    "large": (512, 256, (512, 256), 3, 512, (12288,) * 4),
    "xl": (1024, 256, (1024, 512), 4, 1024, (32768,) * 4),
}
SCHEMAS: Mapping[str, Schema] = {
    "tiny": synthetic_schema(8, 1_000, 1, 0),
    "small": synthetic_schema(16, 10_000, 1, 1),
    "base": synthetic_schema(32, 20_000, 2, 2),
    "large": synthetic_schema(64, 50_000, 2, 2),
    "xl": synthetic_schema(128, 50_000, 6, 4),
}
"""The zoo's fields with 1 to 10 histories: what this model pools grows with it."""


def _config(size: str, schema: Schema) -> DlrmConfig:
    return DlrmConfig(schema, *_SIZES[size])


SIZES: Mapping[str, Callable[[Schema], DlrmConfig]] = {size: partial(_config, size) for size in _SIZES}
