"""HSTU's sizes and switches (arXiv 2402.17152; its public ranker, DLRMv3; ULTRA-HSTU, arXiv 2602.16986)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from mfu_models.batch import Schema, SequenceField
from mfu_models.common.config import SYNTHETIC_SCHEMAS, require
from mfu_models.common.requests import history_of, require_history, require_width


@dataclass(frozen=True, slots=True)
class HstuConfig:
    """An HSTU of N ``max_tokens``, the candidate being the last: d ``width``, d_qk and d_v of each of the heads.

    ``semi_local``: a query sees the ``local_keys`` keys that end with its own and the ``first_keys`` of its row.
    ``truncate``: layers after the first ``full_layers`` keep the last ``tail_tokens`` tokens, one candidate counted.
    """

    schema: Schema
    max_tokens: int
    width: int
    num_layers: int
    num_heads: int
    qk_width: int
    v_width: int
    head_mlp: tuple[int, ...]
    local_keys: int
    first_keys: int
    full_layers: int
    tail_tokens: int
    num_candidates: int = 1
    semi_local: bool = False
    truncate: bool = False
    # Readings on which the paper and its public code differ.
    concat_ux: bool = True  # the public code's output matrix reads [u | attention | gated]; the paper's, gated only
    position_bias: bool = False  # the paper adds a relative bias to the scores, DLRMv3 encodings to the tokens

    def __post_init__(self) -> None:
        sizes = ("num_layers", "num_heads", "qk_width", "v_width")
        for field in (*sizes, "local_keys", "full_layers", "tail_tokens", "num_candidates"):
            require(getattr(self, field) >= 1, f"{field}={getattr(self, field)}; allowed: at least 1")
        require(self.max_tokens >= 2, f"max_tokens={self.max_tokens}; allowed: at least 2, an event and a candidate")
        require(self.first_keys >= 0, f"first_keys={self.first_keys}; allowed: at least 0")
        for field, most in (("full_layers", "num_layers"), ("tail_tokens", "max_tokens")):
            value, limit = getattr(self, field), getattr(self, most)
            fits = value <= limit or not self.truncate
            require(fits, f"{field}={value}; allowed with truncate: 1 to {most}={limit}")
        require(all(width >= 1 for width in self.head_mlp), f"head_mlp={self.head_mlp}; allowed: widths of at least 1")
        require_history(self.schema, "hstu")
        require_width(self.schema, self.width)

    @property
    def history(self) -> SequenceField:
        """The one sequence that it reads."""
        return history_of(self.schema)

    @property
    def window(self) -> int | None:
        """Farthest key behind a query that is seen, the first ones aside; None where all are."""
        return self.local_keys - 1 if self.semi_local else None

    @property
    def truncated_after(self) -> int:
        """Number of layers before the truncation."""
        return self.full_layers if self.truncate else self.num_layers


def max_lengths(config: HstuConfig) -> dict[str, int]:
    """The most events that its one sequence keeps: all tokens but the candidate."""
    return {config.history.name: config.max_tokens - 1}


# max_tokens, width, num_layers, num_heads, qk_width, v_width, head_mlp,
# local_keys, first_keys, full_layers, tail_tokens
_SIZES = {
    "tiny": (64, 32, 2, 2, 16, 16, (32,), 16, 4, 1, 32),
    "small": (256, 64, 3, 2, 32, 32, (64,), 64, 8, 2, 128),
    "base": (256, 256, 3, 4, 64, 64, (256,), 64, 16, 2, 128),
    "large": (512, 512, 4, 4, 128, 128, (512,), 128, 32, 1, 256),
    "xl": (2048, 512, 8, 4, 128, 128, (512,), 256, 32, 3, 512),
    "dlrmv3": (4096, 512, 5, 4, 128, 128, (512,), 256, 32, 3, 512),
}
_ULTRA_SIZES = {  # with both savings on
    "ultra_tiny": _SIZES["tiny"],
    "ultra_small": _SIZES["small"],
    "ultra_base": (512, 256, 4, 4, 64, 64, (256,), 64, 16, 2, 128),
    "ultra_large": (1024, 512, 4, 4, 128, 128, (512,), 128, 32, 1, 256),
    "ultra_xl": (3072, 512, 9, 4, 128, 128, (512,), 256, 32, 3, 512),
}


def _config(size: str, schema: Schema) -> HstuConfig:
    if size in _ULTRA_SIZES:
        return HstuConfig(schema, *_ULTRA_SIZES[size], semi_local=True, truncate=True)
    return HstuConfig(schema, *_SIZES[size])


SIZES: Mapping[str, Callable[[Schema], HstuConfig]] = {size: partial(_config, size) for size in _SIZES | _ULTRA_SIZES}
SCHEMAS: Mapping[str, Schema] = {
    size: SYNTHETIC_SCHEMAS["large" if size == "dlrmv3" else size.removeprefix("ultra_")] for size in SIZES
}
"""The zoo's synthetic schemas: ULTRA-HSTU's sizes share those of the plain ones, DLRMv3 that of large."""
