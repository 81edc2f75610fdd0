"""Kunlun's sizes and switches.

Every component of the paper is a switch, so that the road from InterFormer's parts to the full model is a list of
configs. Where sources differ, the default is named beside the field. Sizes are this project's ladder: the paper gives
ranges (widths 128-256, 3-6 layers, windows 50-200), not a table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mfu_kernels.activations import ACTIVATIONS
from mfu_models.batch import Schema, SequenceField
from mfu_models.common.config import require, require_sizes
from mfu_models.common.wukong import BlockShape


@dataclass(frozen=True, slots=True)
class Tower:
    """One event type's own widths (event-level personalisation)."""

    max_length: int
    width: int
    num_heads: int
    num_tokens: int
    num_layers: int
    window: int


@dataclass(frozen=True, slots=True)
class KunlunConfig:
    """A Kunlun: d ``width``, L ``num_layers``, n_sum ``num_summary``, n_kv ``kv_width``, M ``num_experts``."""

    schema: Schema
    width: int
    num_layers: int
    num_summary: int
    kv_width: int
    num_experts: int
    fm_rank: int
    expert_mlp: tuple[int, ...]
    head_mlp: tuple[int, ...]
    engagement: Tower
    exposure: Tower
    seeds_per_token: int = 4
    kron_rank: int = 8
    # The components, each a step of the road.
    towers: bool = True  # False: a sample's sequences merged into one, as in InterFormer: none is left to personalise
    ffn: Literal["pffn", "gdpa"] = "gdpa"
    pooling: Literal["pma", "hsp"] = "hsp"
    attention: Literal["full", "window"] = "window"
    comp_skip: bool = True
    event_personalization: bool = True
    interaction_experts: bool = True
    rote: bool = True
    # Readings of the paper on which its sources differ.
    activation: str = "gelu_tanh"
    gdpa_scale: Literal["one", "max_length"] = "one"  # the kernel library has 1, the paper's text 1 / maximum length
    qo_proj: bool = False  # query and output projections around GDPA: only a third party's re-implementation has them
    summary_gate: bool = False  # InterFormer gates its summary, Kunlun's sources show a plain MLP
    rote_gap: Literal["adjacent", "request"] = "adjacent"
    rote_scale_s: float = 86_400.0

    def __post_init__(self) -> None:
        require_sizes(self, "width", "num_layers", "num_summary", "kv_width", "fm_rank", "kron_rank")
        require_sizes(self, "expert_mlp", "head_mlp")
        seeds = self.seeds_per_token
        require(seeds >= 2, f"seeds_per_token={seeds}; allowed: at least 2, as HSP needs more seeds than tokens")
        require(self.activation in ACTIVATIONS, f"activation={self.activation!r}; allowed: {', '.join(ACTIVATIONS)}")
        require(self.rote_scale_s > 0, f"rote_scale_s={self.rote_scale_s}; allowed: more than 0 seconds")
        require(bool(self.schema.sequences), f"source {self.schema.source} has no event sequence; kunlun needs one")
        for name, tower in (("engagement", self.engagement), ("exposure", self.exposure)):
            _check_tower(name, tower, self.num_layers)
        tokens = self.num_interaction_tokens
        experts = self.num_experts
        require(1 <= experts <= tokens // 2, f"num_experts={experts}; allowed: 1 to {tokens // 2}, half the tokens")

    @property
    def sequence_towers(self) -> tuple[tuple[SequenceField, Tower], ...]:
        """Each sequence with its tower; without personalisation, or merged, all have the engagement tower's widths."""
        personal = self.event_personalization and self.towers
        own = {"engagement": self.engagement, "exposure": self.exposure if personal else self.engagement}
        return tuple((sequence, own[sequence.kind]) for sequence in self.schema.sequences)

    @property
    def event_towers(self) -> tuple[tuple[tuple[str, ...], Tower], ...]:
        """The towers there are, each after the names of the sequences that run through it: one name, or all merged."""
        if self.towers:
            return tuple(((sequence.name,), tower) for sequence, tower in self.sequence_towers)
        return ((tuple(sequence.name for sequence in self.schema.sequences), self.engagement),)

    @property
    def num_pooled_tokens(self) -> int:
        """Tokens of all towers' H together."""
        return sum(tower.num_tokens for _, tower in self.event_towers)

    @property
    def num_interaction_tokens(self) -> int:
        """Tokens that the global interaction works on: X_sum and every H."""
        return self.num_summary + self.num_pooled_tokens

    @property
    def expert_tokens(self) -> tuple[int, ...]:
        """Tokens of each interaction expert: features are partitioned, and every expert runs on every sample."""
        experts = self.num_experts if self.interaction_experts else 1
        small, larger = divmod(self.num_interaction_tokens, experts)
        return tuple(small + (i < larger) for i in range(experts))

    @property
    def expert_blocks(self) -> tuple[BlockShape, ...]:
        """Each expert's Wukong block, with as many tokens out as in, half of them from its FMB, and Y fixed."""
        return tuple(
            BlockShape(count, self.width, count // 2, count - count // 2, self.fm_rank, self.expert_mlp)
            for count in self.expert_tokens
        )


def _check_tower(name: str, tower: Tower, num_layers: int) -> None:
    def need(condition: bool, field: str, allowed: str) -> None:
        require(condition, f"{name}.{field}={getattr(tower, field)}; allowed: {allowed}")

    for field in ("max_length", "width", "num_heads", "num_tokens", "window"):
        need(getattr(tower, field) >= 1, field, "at least 1")
    need(1 <= tower.num_layers <= num_layers, "num_layers", f"1 to num_layers={num_layers}")
    heads = tower.num_heads
    need(
        tower.width % (2 * heads) == 0,
        "width",
        f"a multiple of {2 * heads} (num_heads={heads}, even head width for ROTE)",
    )


def max_lengths(config: KunlunConfig) -> dict[str, int]:
    """The most events that each sequence keeps."""
    return {sequence.name: tower.max_length for sequence, tower in config.sequence_towers}


# width, num_layers, num_summary, kv_width, num_experts, fm_rank, expert_mlp, head_mlp, engagement tower, exposure tower
_SIZES = {
    "tiny": (32, 2, 4, 16, 1, 4, (64,), (64, 32), Tower(32, 32, 2, 4, 2, 8), Tower(32, 16, 2, 2, 1, 4)),
    "small": (64, 2, 4, 32, 2, 8, (256,), (256, 128), Tower(128, 64, 2, 8, 2, 32), Tower(128, 32, 2, 4, 2, 16)),
    "base": (128, 4, 8, 64, 2, 16, (512,) * 2, (512, 256), Tower(256, 128, 4, 16, 2, 50), Tower(256, 64, 2, 8, 2, 25)),
    "large": (
        *(256, 4, 8, 128, 2, 24, (2048,) * 2, (1024, 512, 256)),
        *(Tower(512, 256, 8, 32, 3, 100), Tower(1024, 128, 4, 16, 2, 50)),
    ),
    "large_plus": (
        *(384, 4, 16, 256, 2, 32, (2048,) * 2, (1024, 512, 256)),
        *(Tower(1024, 384, 6, 32, 4, 100), Tower(1024, 192, 3, 16, 4, 50)),
    ),
    "xl": (
        *(512, 6, 16, 256, 4, 48, (4096,) * 2, (2048, 1024, 512)),
        *(Tower(1024, 512, 4, 32, 6, 100), Tower(1024, 256, 4, 16, 4, 50)),
    ),
    "xxl": (
        *(512, 6, 16, 256, 8, 96, (8192,) * 2, (2048, 1024, 512)),
        *(Tower(1024, 512, 4, 32, 6, 100), Tower(1024, 256, 4, 16, 4, 50)),
    ),
}


def _config(size: str, schema: Schema) -> KunlunConfig:
    return KunlunConfig(schema, *_SIZES[size])


SIZES: Mapping[str, Callable[[Schema], KunlunConfig]] = {size: partial(_config, size) for size in _SIZES}
