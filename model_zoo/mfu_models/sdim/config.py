"""SDIM's sizes and switches (arXiv 2205.10249)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from mfu_models.batch import Schema, SequenceField
from mfu_models.common.config import require


@dataclass(frozen=True, slots=True)
class SdimConfig:
    """An SDIM: d ``width``, m ``num_hashes`` in groups of tau ``hash_bits``; T ``max_length`` of the long history."""

    schema: Schema
    max_length: int
    short_length: int
    width: int
    num_hashes: int
    hash_bits: int
    att_mlp: tuple[int, ...]
    head_mlp: tuple[int, ...]
    l2_norm: bool = True  # of each group's sum, as the paper has it; a public implementation leaves it off

    def __post_init__(self) -> None:
        for field in ("max_length", "short_length", "hash_bits"):
            require(getattr(self, field) >= 1, f"{field}={getattr(self, field)}; allowed: at least 1")
        hashes, bits = self.num_hashes, self.hash_bits
        require(hashes >= bits and hashes % bits == 0, f"num_hashes={hashes}; allowed: a multiple of hash_bits={bits}")
        for field in ("att_mlp", "head_mlp"):
            widths = getattr(self, field)
            allowed = "one or more widths of at least 1"
            require(bool(widths) and all(width >= 1 for width in widths), f"{field}={widths}; allowed: {allowed}")
        least = max(1, 2 * len(self.schema.sides))
        require(self.width >= least, f"width={self.width}; allowed: at least {least}, to hold an event's ids")
        count = len(self.schema.sequences)
        require(
            count >= 2, f"source {self.schema.source} has {count} event sequences; sdim needs a short and a long one"
        )

    @property
    def long_history(self) -> SequenceField:
        """What is hashed: all that the user was shown, where the source has that, else its last sequence."""
        sequences = self.schema.sequences
        return next((sequence for sequence in sequences if sequence.kind == "exposure"), sequences[-1])

    @property
    def short_history(self) -> SequenceField:
        """What DIN reads: what the user engaged with, where the source has that besides, else another sequence."""
        others = [sequence for sequence in self.schema.sequences if sequence != self.long_history]
        return next((sequence for sequence in others if sequence.kind == "engagement"), others[0])

    @property
    def head_widths(self) -> tuple[int, ...]:
        """All widths of the head, on both histories, the candidate, the fields and the dense features."""
        return ((3 + len(self.schema.sparse)) * self.width + len(self.schema.dense), *self.head_mlp, 1)


def max_lengths(config: SdimConfig) -> dict[str, int]:
    """The most events that its two sequences keep."""
    return {config.long_history.name: config.max_length, config.short_history.name: config.short_length}


# max_length, short_length, width, num_hashes, hash_bits, att_mlp, head_mlp
_SIZES = {
    "tiny": (128, 16, 32, 12, 3, (32,), (64, 32)),
    "small": (512, 16, 64, 24, 3, (64, 16), (256, 128)),
    "base": (1024, 50, 128, 48, 3, (256, 64), (1024, 512, 256)),
    "large": (4096, 50, 256, 48, 3, (512, 256), (8192, 8192, 4096)),
    "xl": (16384, 100, 256, 48, 3, (512, 256), (16384, 16384, 8192)),
}


def _config(size: str, schema: Schema) -> SdimConfig:
    return SdimConfig(schema, *_SIZES[size])


SIZES: Mapping[str, Callable[[Schema], SdimConfig]] = {size: partial(_config, size) for size in _SIZES}
