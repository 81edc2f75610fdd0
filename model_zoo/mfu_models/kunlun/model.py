"""Kunlun (arXiv 2602.10016): a ranker of context tokens X and one event tower S_e for each event type.

For layer l = 0 .. L-1, with every component on:

    X_sum   = WeightGen(X)                                    [B, n_sum, d]
    H_e     = HSP_e(S_e)                 l even, else reused  [B, n_tok, d]
    X       = Interaction([X_sum | H_1 | .. | H_E])           [B, n_g, d]
    S_e     = GDPA_e(S_e, X_sum)         l even               [T_e, d_e]
    S_e     = LN(S_e + SWA_e(S_e))       l odd
    score   = MLP([X | H_1 | .. | H_E])

A tower that ends (after L_e <= L layers) is pooled once more, with seeds of its own, so that its last layers reach the
score; later layers and the head use that H_e. The candidate is part of X: what its fields say, in tables that towers,
each with its own, do not share; the synthetic source's hold attributes of its item, not the item. Without computation
skip every layer does both halves. Without towers the sequences of a sample are merged into one, S = MaskNet([S_1 | .. |
S_k]) aligned on their most recent events, which runs through one tower of the engagement widths. Not in it, because no
source that could be read describes it: the paper's optimiser settings, its loss weights over tasks, and its
expert-parallel placement.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from mfu_kernels.registry import Impl
from mfu_models.batch import Batch
from mfu_models.common.config import num_context_tokens
from mfu_models.common.embedding import FieldEmbedding
from mfu_models.common.layers import DenseToken, Mlp, TokenMix
from mfu_models.common.wukong import WukongBlock

from .config import KunlunConfig
from .flops import DENSE_EXPANSION
from .towers import EventTower


class WeightGen(nn.Module):
    """X_sum: the tokens of X mixed to n_sum, then an MLP on each; InterFormer's gate where asked for."""

    def __init__(self, config: KunlunConfig, num_tokens: int) -> None:
        super().__init__()
        d = config.width
        self.mix = TokenMix(num_tokens, config.num_summary)
        self.mlp = Mlp((d, d, d))
        self.gate = nn.Linear(d, d) if config.summary_gate else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, d] -> [B, n_sum, d]."""
        summary: Tensor = self.mlp(self.mix(x))
        return summary if self.gate is None else summary * torch.sigmoid(self.gate(summary))


class Interaction(nn.Module):
    """The global interaction: Wukong experts that each own a share of the tokens, all of them on every sample."""

    def __init__(self, config: KunlunConfig, impl: Impl) -> None:
        super().__init__()
        self.sizes = list(config.expert_tokens)
        self.experts = nn.ModuleList(WukongBlock(shape, impl) for shape in config.expert_blocks)

    def forward(self, *parts: Tensor) -> Tensor:
        """``parts`` [B, n_i, d], n_g tokens together -> [B, n_g, d]."""
        shares = dense_shares(parts, self.sizes)
        return torch.cat([expert(share) for expert, share in zip(self.experts, shares, strict=True)], dim=1)


def dense_shares(parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """The tokens of ``parts`` [B, n_i, d], in order, as shares of ``sizes`` tokens, each with a memory of its own.

    Where all tokens were laid side by side first, a share would be strided, and copied again by what reads it.
    """
    ends, begin = list(accumulate(sizes)), 0
    pieces: list[list[Tensor]] = [[] for _ in sizes]
    for part in parts:
        last = begin + part.shape[1]
        cuts = [begin, *(end for end in ends if begin < end < last), last]
        lengths = [after - before for before, after in pairwise(cuts)]
        for piece in part.split(lengths, dim=1) if len(lengths) > 1 else (part,):
            pieces[sum(end <= begin for end in ends)].append(piece)
            begin += piece.shape[1]
    return [torch.cat(share, dim=1) for share in pieces]


class Kunlun(nn.Module):
    """The whole model; ``forward(batch)`` gives logits [B]."""

    def __init__(self, config: KunlunConfig, impl: Impl = "auto") -> None:
        super().__init__()
        self.config = config
        d, dense, widest = config.width, len(config.schema.dense), config.num_interaction_tokens
        self.dense = DenseToken((dense, DENSE_EXPANSION * d, d))
        self.fields = FieldEmbedding(config.schema, d, impl)
        self.towers = nn.ModuleDict(
            {"+".join(names): EventTower(config, tower, len(names), impl) for names, tower in config.event_towers}
        )
        tokens = [num_context_tokens(config.schema)] + [widest] * (config.num_layers - 1)
        self.weight_gens = nn.ModuleList(WeightGen(config, count) for count in tokens)
        self.interactions = nn.ModuleList(Interaction(config, impl) for _ in tokens)
        self.head = Mlp(((widest + config.num_pooled_tokens) * d, *config.head_mlp, 1))

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of the candidate's label."""
        x = torch.cat([self.dense(batch.dense).unsqueeze(1), self.fields(batch.sparse)], dim=1)
        towers = [cast(EventTower, tower) for tower in self.towers.values()]
        states = []
        for tower, (names, _) in zip(towers, self.config.event_towers, strict=True):
            states.append(tower([batch.sequences[name] for name in names], batch.times_ms))
        for layer, (weight_gen, interaction) in enumerate(zip(self.weight_gens, self.interactions, strict=True)):
            summary = weight_gen(x)
            for tower, state in zip(towers, states, strict=True):
                tower.advance(state, layer, summary)
            x = interaction(summary, *(state.pooled for state in states))
        for tower, state in zip(towers, states, strict=True):
            tower.advance(state, len(self.weight_gens), summary)
        flat = torch.cat([x, *(state.pooled for state in states)], dim=1).flatten(1)
        logits: Tensor = self.head(flat).squeeze(-1)
        return logits
