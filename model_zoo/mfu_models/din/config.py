"""DIN's sizes and switches (arXiv 1706.06978), and those of DIEN (arXiv 1809.03672), which is one of the switches.

The sizes are DIN's. With ``dien`` the sizes tiny, small and base are DIEN's too; its large and xl keep half as many
events: max_length 512 and 1024.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from mfu_models.batch import Schema, SequenceField
from mfu_models.common.config import require


@dataclass(frozen=True, slots=True)
class DinConfig:
    """A DIN: e ``width`` of an event, the candidate and each field; ``att_mlp`` is the local activation unit's."""

    schema: Schema
    max_length: int
    width: int
    att_mlp: tuple[int, ...]
    head_mlp: tuple[int, ...]
    # Only DIEN reads these: the width h of an interest, and its auxiliary loss's network.
    interest_width: int
    aux_mlp: tuple[int, ...]
    dien: bool = False
    softmax: bool = False  # DIN's paper sums with weights as they are, much code normalises them; DIEN always does
    aux_weight: float = 1.0

    def __post_init__(self) -> None:
        for field in ("max_length", "interest_width"):
            require(getattr(self, field) >= 1, f"{field}={getattr(self, field)}; allowed: at least 1")
        for field in ("att_mlp", "head_mlp", "aux_mlp"):
            widths = getattr(self, field)
            allowed = "one or more widths of at least 1"
            require(bool(widths) and all(width >= 1 for width in widths), f"{field}={widths}; allowed: {allowed}")
        least = max(1, 2 * len(self.schema.sides))
        require(self.width >= least, f"width={self.width}; allowed: at least {least}, to hold an event's ids")
        require(self.aux_weight > 0, f"aux_weight={self.aux_weight}; allowed: more than 0")
        require(bool(self.schema.sequences), f"source {self.schema.source} has no event sequence; din needs one")

    @property
    def history(self) -> SequenceField:
        """The one sequence that it reads: what the user engaged with, where the source has that, else its first."""
        sequences = self.schema.sequences
        return next((sequence for sequence in sequences if sequence.kind == "engagement"), sequences[0])

    @property
    def user_width(self) -> int:
        """Width of what the history becomes: DIN's sum, or DIEN's last interest and the events' mean."""
        return self.interest_width + self.width if self.dien else self.width

    @property
    def head_widths(self) -> tuple[int, ...]:
        """All widths of the head, on the user, the candidate, the fields and the dense features."""
        own = self.user_width + (1 + len(self.schema.sparse)) * self.width + len(self.schema.dense)
        return (own, *self.head_mlp, 1)


# max_length, width, att_mlp, head_mlp, interest_width, aux_mlp
_SIZES = {
    "tiny": (32, 32, (32,), (64, 32), 32, (32,)),
    "small": (128, 64, (64, 16), (256, 128), 64, (80, 40)),
    "base": (256, 128, (256, 64), (1024, 512, 256), 128, (80, 40)),
    "large": (1024, 256, (512, 256), (4096, 2048, 1024), 512, (512, 256)),
    "xl": (2048, 512, (1024, 512), (8192, 4096, 2048), 1024, (512, 256)),
}


def _config(size: str, schema: Schema) -> DinConfig:
    return DinConfig(schema, *_SIZES[size])


SIZES: Mapping[str, Callable[[Schema], DinConfig]] = {size: partial(_config, size) for size in _SIZES}
