"""LiGR (arXiv 2502.03417): a ranker of all candidates of a request in one pass.

    x_t     = [item | sides] + position (+ fields + dense W, of a candidate)     [T + m, d], history and m candidates
    x       = x + g(x) * MHA(LN(x));  x = x + g'(x) * MLP(LN(x))                 L times, g(x) = sigmoid(x W_g + b)
    c       = x_candidates + MHA(LN(x_candidates))                               [m, d], set-wise attention
    score   = MLP(LN(c))

In the layers the history is causal and a candidate sees the history and itself; the set-wise attention at the end lets
the candidates of a request see each other, so that a score depends on the set. A set has no order: all candidates stand
at one position, and a score does not depend on the others' order.

The gate is as in LiGRLayer of MTS's RecTools (MobileTeleSystems/RecTools, Apache-2.0): on each residual branch a matrix
that reads the stream as it is before the branch's norm. It is a switch, as is the set-wise attention. The MLP has two
layers with GELU, where RecTools has SwiGLU by default. Still open, for no source that could be read tells it: how the
paper lays out attention within a session. One task stands for the paper's heads; widths of the head are fitted. Of the
last layer no score reads the history's rows: there they are keys and values only, and all else is the candidates'. The
project's size table counted that layer whole. Not in it: semantic ids.
"""

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.registry import Impl
from mfu_models.batch import Batch, EventSequence
from mfu_models.common.layers import JaggedSelfAttention, LayerNorm, Mlp
from mfu_models.common.requests import RequestTokens

from .config import LigrConfig


class GatedResidual(nn.Module):
    """x + sigmoid(x W_g + b) * branch, or x + branch without a gate."""

    def __init__(self, config: LigrConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.width) if config.gate else None

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Both [..., d] -> [..., d]."""
        return x + (branch if self.gate is None else torch.sigmoid(self.gate(x)) * branch)


class RequestAttention(nn.Module):
    """Causal attention within each history; each candidate attends to its history and itself."""

    def __init__(self, width: int, num_heads: int, impl: Impl) -> None:
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.num_heads = num_heads
        self.impl: Impl = impl

    def forward(self, x: Tensor, sequence: EventSequence, *, only_candidates: bool) -> Tensor:
        """``x`` [T + B*m, d], all histories and then all candidates -> [T + B*m, d], or of the candidates [B*m, d]."""
        offsets, longest, impl = sequence.offsets, sequence.max_length, self.impl
        num_events, num_requests = sequence.item_ids.shape[0], offsets.shape[0] - 1
        history, candidates = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).tensor_split([num_events])
        k, v = history.unbind(1)
        own_k, own_v = candidates.unflatten(0, (num_requests, -1)).unbind(2)
        q = self.q(x[num_events:] if only_candidates else x).unflatten(-1, (self.num_heads, -1))
        own_q = q[q.shape[0] - candidates.shape[0] :].unflatten(0, (num_requests, -1))
        mixed = ops.cross_attention(own_q, k, v, offsets, own_k, own_v, max_length=longest, impl=impl).flatten(0, 1)
        if not only_candidates:
            q = q[:num_events]
            past = ops.window_attention(q, k, v, offsets, window=None, causal=True, max_length=longest, impl=impl)
            mixed = torch.cat([past, mixed])
        projected: Tensor = self.out(mixed.flatten(1))
        return projected


class LigrLayer(nn.Module):
    """Pre-norm attention and MLP, each added through a gate."""

    def __init__(self, config: LigrConfig, impl: Impl) -> None:
        super().__init__()
        d = config.width
        self.attention_norm = LayerNorm(d, impl)
        self.attention = RequestAttention(d, config.num_heads, impl)
        self.attention_residual = GatedResidual(config)
        self.ffn_norm = LayerNorm(d, impl)
        self.ffn = Mlp((d, config.expansion * d, d))
        self.ffn_residual = GatedResidual(config)

    def forward(self, x: Tensor, sequence: EventSequence, *, only_candidates: bool = False) -> Tensor:
        """[T + B*m, d] -> [T + B*m, d], or of the candidates [B*m, d]."""
        mixed = self.attention(self.attention_norm(x), sequence, only_candidates=only_candidates)
        x = self.attention_residual(x[sequence.item_ids.shape[0] :] if only_candidates else x, mixed)
        out: Tensor = self.ffn_residual(x, self.ffn(self.ffn_norm(x)))
        return out


class SetWise(nn.Module):
    """Attention among the candidates of each request, with a residual."""

    def __init__(self, config: LigrConfig, impl: Impl) -> None:
        super().__init__()
        self.norm = LayerNorm(config.width, impl)
        self.attention = JaggedSelfAttention(config.width, config.num_heads, window=None, impl=impl)

    def forward(self, candidates: Tensor, num_candidates: int) -> Tensor:
        """[B*m, d] -> [B*m, d]."""
        offsets = torch.arange(0, candidates.shape[0] + 1, num_candidates, device=candidates.device)
        mixed: Tensor = self.attention(self.norm(candidates), offsets, num_candidates)
        return candidates + mixed


class Ligr(nn.Module):
    """The whole model; ``forward(batch)`` gives logits [B*m]."""

    def __init__(self, config: LigrConfig, impl: Impl = "auto") -> None:
        super().__init__()
        self.config = config
        self.tokens = RequestTokens(config.schema, config.width, config.max_length, impl, context=True)
        self.layers = nn.ModuleList(LigrLayer(config, impl) for _ in range(config.num_layers))
        self.set_wise = SetWise(config, impl) if config.set_wise else None
        self.norm = LayerNorm(config.width, impl)
        self.head = Mlp((config.width, *config.head_mlp, 1))

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B*m] of the candidates' labels."""
        sequence = batch.sequences[self.config.history.name]
        x = torch.cat(self.tokens(batch, sequence))
        *layers, last = self.layers
        for layer in layers:
            x = layer(x, sequence)
        candidates = last(x, sequence, only_candidates=True)
        if self.set_wise is not None:
            candidates = self.set_wise(candidates, batch.num_candidates)
        logits: Tensor = self.head(self.norm(candidates)).squeeze(-1)
        return logits
