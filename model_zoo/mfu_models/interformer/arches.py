"""InterFormer's three arches: Interaction (context), Sequence (history), and the summaries that cross between them."""

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.registry import Impl
from mfu_models.common.config import num_context_tokens
from mfu_models.common.layers import CrossLayer, JaggedSelfAttention, LayerNorm, Mlp, SeedAttention, TokenMix

from .config import InterFormerConfig
from .rows import Rows


class SelfGate(nn.Module):
    """Gating: x ⊙ σ(W x), or as the paper prints it σ(x ⊙ W x): [..., d] -> [..., d]."""

    def __init__(self, config: InterFormerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.width, config.width)
        self.printed = config.gate == "printed"

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        return torch.sigmoid(x * self.linear(x)) if self.printed else x * torch.sigmoid(self.linear(x))


class ContextSummary(nn.Module):
    """X_sum = Gating(MLP(X)): the MLP's first layer mixes the tokens into n_sum (LCE), its second maps each."""

    def __init__(self, config: InterFormerConfig) -> None:
        super().__init__()
        self.compress = TokenMix(num_context_tokens(config.schema), config.num_summary)
        self.linear = nn.Linear(config.width, config.width)
        self.gate = SelfGate(config)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, d] -> [B, n_sum, d]."""
        summary: Tensor = self.gate(self.linear(nn.functional.gelu(self.compress(x))))
        return summary


class SequenceSummary(nn.Module):
    """S_sum = Gating([CLS | PMA | K most recent events])."""

    def __init__(self, config: InterFormerConfig, impl: Impl) -> None:
        super().__init__()
        self.pma = SeedAttention(config.num_pma, config.width, config.num_heads, impl)
        self.gate = SelfGate(config)
        self.num_recent = config.num_recent

    def forward(self, s: Tensor, rows: Rows) -> Tensor:
        """``s`` [N, d] -> [B, n_s, d]."""
        tokens = [rows.cls(s), self.pma(s, rows.offsets, rows.max_length), rows.recent(s, self.num_recent)]
        summary: Tensor = self.gate(torch.cat(tokens, dim=1))
        return summary


class InteractionArch(nn.Module):
    """X' = LN(MLP(Interaction([X | S_sum])) + X).

    DOT gives all tokens' inner products beside the tokens, DCN the crossed tokens, DHEN the ensemble of both.
    """

    pairs: Tensor

    def __init__(self, config: InterFormerConfig, impl: Impl) -> None:
        super().__init__()
        tokens, kind = config.num_interaction_tokens, config.interaction
        num_cross = 0 if kind == "dot" else config.num_cross
        self.crosses = nn.ModuleList(CrossLayer(tokens * config.width, config.cross_rank) for _ in range(num_cross))
        self.mlp = Mlp(config.interaction_widths)
        self.norm = LayerNorm(config.width, impl)
        self.dot = kind != "dcn"
        self.register_buffer("pairs", torch.triu_indices(tokens, tokens), persistent=False)

    def forward(self, x: Tensor, summary: Tensor) -> Tensor:
        """``x`` [B, n, d], ``summary`` [B, n_s, d] -> [B, n, d]."""
        tokens = torch.cat([x, summary], dim=1)
        flat = crossed = tokens.flatten(1)
        for cross in self.crosses:
            crossed = cross(flat, crossed)
        features = [crossed]
        if self.dot:
            products = torch.bmm(tokens, tokens.transpose(1, 2)) * tokens.shape[-1] ** -0.5
            features.append(products[:, self.pairs[0], self.pairs[1]])
        normed: Tensor = self.norm(self.mlp(torch.cat(features, dim=1)).view_as(x), x)
        return normed


class SequenceArch(nn.Module):
    """S' = LN(S + W_PFFN S), S'' = LN(S' + MHA(S')) with RoPE, where W_PFFN = X_sum W [d, d] is the sample's own."""

    def __init__(self, config: InterFormerConfig, impl: Impl) -> None:
        super().__init__()
        d = config.width
        self.generate = TokenMix(config.num_summary, d)
        self.ffn_norm = LayerNorm(d, impl)
        self.attention = JaggedSelfAttention(d, config.num_heads, window=None, impl=impl)
        self.attention_norm = LayerNorm(d, impl)
        self.impl: Impl = impl

    def forward(self, s: Tensor, summary: Tensor, rows: Rows, angles: Tensor) -> Tensor:
        """``s`` [N, d], ``summary`` [B, n_sum, d], ``angles`` [N, d_h/2] -> [N, d]."""
        weight = self.generate(summary) * s.shape[-1] ** -0.5
        mapped = ops.jagged_linear(s, weight, rows.offsets, max_length=rows.max_length, impl=self.impl)
        s = self.ffn_norm(mapped, s)
        attended: Tensor = self.attention_norm(self.attention(s, rows.offsets, rows.max_length, angles), s)
        return attended
