"""Kunlun's event towers: generated feed-forward, windowed attention and seed pooling over jagged events."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.jagged import row_of_each
from mfu_kernels.registry import Impl
from mfu_models.batch import EventSequence
from mfu_models.common.embedding import EventEmbedding
from mfu_models.common.layers import JaggedSelfAttention, LayerNorm, SeedAttention, TokenMix, drawn
from mfu_models.common.merging import Alignment, MaskNet

from .config import KunlunConfig, Tower


class GeneratedFfn(nn.Module):
    """Kunlun's PFFN: a two-layer MLP on every event whose weights K and V are generated from the sample's X_sum.

    K = (M X_sum) W_k and V = (M X_sum) W_v, then the GDPA block: q' = LN(q), o = act(scale q' K^T) V + q',
    out = q + RMSNorm(o). The equations have no biases.
    """

    def __init__(self, config: KunlunConfig, tower: Tower, impl: Impl) -> None:
        super().__init__()
        self.mix = TokenMix(config.num_summary, config.kv_width)
        self.to_kv = nn.Linear(config.width, 2 * tower.width, bias=False)
        self.num_heads, self.activation = tower.num_heads, config.activation
        self.scale = 1.0 if config.gdpa_scale == "one" else 1.0 / tower.max_length
        self.q_proj = nn.Linear(tower.width, tower.width, bias=False) if config.qo_proj else None
        self.o_proj = nn.Linear(tower.width, tower.width, bias=False) if config.qo_proj else None
        self.impl: Impl = impl

    def forward(self, x: Tensor, summary: Tensor, offsets: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
        """``x`` [T, d_e], ``summary`` [B, n_sum, d] -> [T, d_e], and ``x`` for who else reads it."""
        kv = self.to_kv(self.mix(summary)).unflatten(-1, (2, self.num_heads, -1))
        scale, activation, impl = self.scale, self.activation, self.impl
        if self.q_proj is None or self.o_proj is None:
            heads = x.unflatten(-1, (self.num_heads, -1))
            block, heads = ops.gdpa_block_kvpacked(
                heads, kv, offsets, scale=scale, activation=activation, max_length=max_length, impl=impl
            )
            return block.flatten(1), heads.flatten(1)
        normed = ops.layer_norm(x, impl=impl)
        k, v = kv.unbind(2)
        q = self.q_proj(normed).unflatten(-1, (self.num_heads, -1))
        mixed = ops.gdpa(q, k, v, offsets, scale=scale, activation=activation, max_length=max_length, impl=impl)
        return x + ops.rms_norm(self.o_proj(mixed.flatten(1)) + normed, eps=1e-5, impl=impl), x


class GeneratedLinear(nn.Module):
    """InterFormer's PFFN, which GDPA replaces: out = LN(x + x W), W [d_e, d_e] generated from the sample's X_sum.

    W has no bias: one would add the same vector to every row of W, which events that a LayerNorm has centred cancel.
    """

    def __init__(self, config: KunlunConfig, tower: Tower, impl: Impl) -> None:
        super().__init__()
        self.mix = TokenMix(config.num_summary, tower.width)
        self.to_weight = nn.Linear(config.width, tower.width, bias=False)
        self.norm = LayerNorm(tower.width, impl)
        self.impl: Impl = impl

    def forward(self, x: Tensor, summary: Tensor, offsets: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
        """``x`` [T, d_e], ``summary`` [B, n_sum, d] -> [T, d_e], and ``x`` for who else reads it."""
        weight = self.to_weight(self.mix(summary))
        mapped = ops.jagged_linear(x, weight * weight.shape[-1] ** -0.5, offsets, max_length=max_length, impl=self.impl)
        return self.norm(mapped, x), x


class SeedPooling(SeedAttention):
    """HSP: seeds attend to a row's events, then SumKronLinear condenses them; with PMA the seeds are the tokens.

    H_seed = MHA(LN(E), S, S); H = sum_r Z_r^T H_seed W_r; a tower narrower than the model is widened to it.
    """

    def __init__(self, config: KunlunConfig, tower: Tower, impl: Impl) -> None:
        d, tokens, hsp = tower.width, tower.num_tokens, config.pooling == "hsp"
        num_seeds = tokens * (config.seeds_per_token if hsp else 1)
        super().__init__(num_seeds, d, tower.num_heads, impl)
        rank = config.kron_rank
        self.z = drawn(rank, num_seeds, tokens, std=(rank * num_seeds) ** -0.5) if hsp else None
        self.w = drawn(rank, d, d, std=d**-0.5) if hsp else None
        self.widen = nn.Linear(d, config.width, bias=False) if d != config.width else None

    def forward(self, x: Tensor, offsets: Tensor, max_length: int, angles: Tensor | None = None) -> Tensor:
        """``x`` [T, d_e], ``angles`` [T, d_h/2] or None -> [B, n_tok, d]."""
        tokens = super().forward(x, offsets, max_length, angles)
        if self.z is not None and self.w is not None:
            tokens = ops.sum_kron_linear(tokens, self.z, self.w, impl=self.impl)
        return tokens if self.widen is None else self.widen(tokens)


class TowerLayer(nn.Module):
    """One layer of a tower: which of GDPA with fresh pooling, and attention, it has is the computation skip."""

    def __init__(self, config: KunlunConfig, tower: Tower, layer: int, impl: Impl) -> None:
        super().__init__()
        even = layer % 2 == 0
        self.pool: SeedPooling | None = None
        self.ffn: GeneratedFfn | GeneratedLinear | None = None
        self.attention: JaggedSelfAttention | None = None
        self.norm: LayerNorm | None = None
        if even or not config.comp_skip:
            self.pool = SeedPooling(config, tower, impl)
            self.ffn = (GeneratedFfn if config.ffn == "gdpa" else GeneratedLinear)(config, tower, impl)
        if not even or not config.comp_skip:
            window = tower.window if config.attention == "window" else None
            self.attention = JaggedSelfAttention(tower.width, tower.num_heads, window=window, impl=impl)
            self.norm = LayerNorm(tower.width, impl)

    def forward(
        self, x: Tensor, summary: Tensor, offsets: Tensor, max_length: int, angles: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The events after this layer, [T, d_e], and H_e [B, n_tok, d] of those before it, if it pools."""
        pooled = None
        if self.pool is not None and self.ffn is not None:
            x, before = self.ffn(x, summary, offsets, max_length)
            pooled = self.pool(before, offsets, max_length, angles)
        if self.attention is not None and self.norm is not None:
            x = self.norm(self.attention(x, offsets, max_length, angles), x)
        return x, pooled


@dataclass(slots=True)
class TowerState:
    """A tower's way through the layers: events ``x`` [T, d_e], their rows and rotations, and H_e [B, n_tok, d]."""

    x: Tensor
    pooled: Tensor
    offsets: Tensor
    max_length: int
    angles: Tensor | None


class EventAngles(nn.Module):
    """ROTE's rotation of each event, from its position and log(1 + gap / scale).

    Both turn at the same frequencies (phi is theta's copy), so that together they are one variable, their sum.
    Positions count from the oldest event that is kept. With gaps between adjacent events no angle tells how long ago a
    history was: moved by a week, it gives the same logits, and dense features alone can carry its age.
    """

    theta: Tensor
    phi: Tensor

    def __init__(self, config: KunlunConfig, tower: Tower) -> None:
        super().__init__()
        self.gap, self.scale_ms = config.rote_gap, 1000.0 * config.rote_scale_s
        pairs = tower.width // tower.num_heads // 2
        frequencies = 10_000.0 ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
        self.register_buffer("theta", frequencies, persistent=False)
        self.register_buffer("phi", frequencies.clone(), persistent=False)

    def forward(self, offsets: Tensor, times_ms: Tensor, request_ms: Tensor) -> Tensor:
        """``offsets`` [B+1], ``times_ms`` [T] and ``request_ms`` [B], both int64 -> [T, d_h/2]."""
        index = torch.arange(times_ms.shape[0], device=times_ms.device)
        row = row_of_each(offsets, times_ms.shape[0])
        position = index - offsets[row]
        if self.gap == "request":
            gap_ms = request_ms[row] - times_ms
        else:
            gap_ms = torch.where(position > 0, times_ms - times_ms.roll(1), torch.zeros_like(times_ms))
        log_gap = torch.log1p(gap_ms.float() / self.scale_ms)
        return ops.rotary_angles(position, log_gap, self.theta, self.phi)


class EventTower(nn.Module):
    """One event type's tower, or that of all merged: embedding, layers, and the pooling once more where it ends."""

    def __init__(self, config: KunlunConfig, tower: Tower, num_sequences: int, impl: Impl) -> None:
        super().__init__()
        self.embedding = EventEmbedding(config.schema, tower.width, tower.width, impl)
        self.project = nn.Linear(self.embedding.width, tower.width, bias=False)  # an item's row can hold one
        self.merge = None if config.towers else MaskNet(num_sequences * tower.width, tower.width)
        self.layers = nn.ModuleList(TowerLayer(config, tower, layer, impl) for layer in range(tower.num_layers))
        self.final_pool = SeedPooling(config, tower, impl)
        self.angles = EventAngles(config, tower) if config.rote else None

    def forward(self, sequences: Sequence[EventSequence], request_ms: Tensor) -> TowerState:
        """The state before the first layer; H_e is empty until the first pooling. ``request_ms`` int64 [B]."""
        parts = [self.project(self.embedding.of(sequence)) for sequence in sequences]
        rows: EventSequence | Alignment
        if self.merge is None:
            (rows,), (x,) = sequences, parts
            times_ms = rows.times_ms
        else:
            rows = Alignment.of(sequences)
            x = self.merge(rows.join(parts))
            times_ms = rows.latest([sequence.times_ms for sequence in sequences])
        angles = None if self.angles is None else self.angles(rows.offsets, times_ms, request_ms)
        return TowerState(x, x.new_empty(0), rows.offsets, rows.max_length, angles)

    def advance(self, state: TowerState, layer: int, summary: Tensor) -> None:
        """Take the events through ``layer``, whose H_e is of those before it; where the tower ends, only renew H_e.

        ``summary`` [B, n_sum, d].
        """
        if layer < len(self.layers):
            state.x, pooled = self.layers[layer](state.x, summary, state.offsets, state.max_length, state.angles)
            state.pooled = state.pooled if pooled is None else pooled
        elif layer == len(self.layers):
            state.pooled = self.final_pool(state.x, state.offsets, state.max_length, state.angles)
