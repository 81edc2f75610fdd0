"""LinkedIn's amortised history modelling (arXiv 2412.06924): the m candidates of a request share one history pass.

    h_t, c  = [item | sides] + position                              [T, d] and [m, d]
    Q       = [H | C] W_q;  K, V = H W_k, H W_v                      the candidates are never keys
    X       = LN([H | C] + softmax(Q K^T / sqrt(d_h)) V W_o)         [T + m, d]
    [H | C] = LN(X + MLP(X))                                         L times
    score   = MLP([c | dense W | fields])                            m logits

No row of the history depends on a candidate, and a candidate's row on no other candidate: the scores are those of one
pass for each candidate, at about 1/m of its FLOPs where T is long. ``mixing = "concat"`` is what this replaces: every
event is joined with the candidate, [h_t | c] of width 2 d, and the layers run anew for each candidate, whose row in the
head is the mean over its events (of an empty history, the head's other inputs alone tell candidates apart).

Readings: softmax; the candidates' rows pass through every layer's MLP, as more than one layer needs; an event sees the
whole history (causal: a switch); post-norm. Of the last layer no score reads the history's rows: there they are keys
and values only, and all else is the candidates'. The project's size table counted that layer whole, as does the paper's
estimate, (n + m) d², which also projects the candidates' rows to keys and values, which nothing would read. Not in it:
the paper's sizes, data and optimiser, which could not be read.
"""

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.jagged import row_of_each
from mfu_kernels.registry import Impl
from mfu_models.batch import Batch
from mfu_models.common.embedding import FieldEmbedding
from mfu_models.common.layers import DenseToken, JaggedSelfAttention, LayerNorm, Mlp
from mfu_models.common.requests import RequestTokens

from .config import AmortizedHistoryConfig


class AppendAttention(nn.Module):
    """Events attend to their history, and candidates, appended behind all events, to theirs; only events are keys."""

    def __init__(self, config: AmortizedHistoryConfig, impl: Impl) -> None:
        super().__init__()
        d = config.width
        self.q = nn.Linear(d, d, bias=False)
        self.kv = nn.Linear(d, 2 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.num_heads, self.causal = config.num_heads, config.causal
        self.impl: Impl = impl

    def forward(
        self, x: Tensor, offsets: Tensor, max_length: int, num_candidates: int, only_candidates: bool = False
    ) -> Tensor:
        """``x`` [T + B*m, d], ``offsets`` [B+1] of the events -> [T + B*m, d], or of the candidates [B*m, d]."""
        num_requests, impl = offsets.shape[0] - 1, self.impl
        num_own = num_requests * num_candidates
        events = x[: x.shape[0] - num_own]
        k, v = self.kv(events).unflatten(-1, (2, self.num_heads, -1)).unbind(1)
        q = self.q(x[events.shape[0] :] if only_candidates else x).unflatten(-1, (self.num_heads, -1))
        own_q = q[q.shape[0] - num_own :].unflatten(0, (num_requests, num_candidates))
        mixed = ops.cross_attention(own_q, k, v, offsets, max_length=max_length, impl=impl).flatten(0, 1)
        if not only_candidates:
            q, causal = q[: events.shape[0]], self.causal
            past = ops.window_attention(q, k, v, offsets, window=None, causal=causal, max_length=max_length, impl=impl)
            mixed = torch.cat([past, mixed])
        projected: Tensor = self.out(mixed.flatten(1))
        return projected


class Layer(nn.Module):
    """Attention within each row, then an MLP on every token, each with a residual and a norm."""

    def __init__(self, config: AmortizedHistoryConfig, impl: Impl) -> None:
        super().__init__()
        d, heads = config.token_width, config.num_heads
        self.attention = (
            AppendAttention(config, impl)
            if config.mixing == "append"
            else JaggedSelfAttention(d, heads, window=None, causal=config.causal, impl=impl)
        )
        self.attention_norm = LayerNorm(d, impl)
        self.ffn = Mlp((d, config.expansion * d, d))
        self.ffn_norm = LayerNorm(d, impl)

    def forward(self, x: Tensor, *rows: Tensor | int) -> Tensor:
        """``x`` of the tokens, ``rows`` as the attention takes them -> as many of them, the last, as it gives."""
        mixed = self.attention(x, *rows)
        x = self.attention_norm(mixed, x[x.shape[0] - mixed.shape[0] :])
        out: Tensor = self.ffn_norm(self.ffn(x), x)
        return out


class AmortizedHistory(nn.Module):
    """The whole model; ``forward(batch)`` gives logits [B*m]."""

    def __init__(self, config: AmortizedHistoryConfig, impl: Impl = "auto") -> None:
        super().__init__()
        self.config = config
        d, schema = config.width, config.schema
        self.tokens = RequestTokens(schema, d, config.max_length, impl)
        self.layers = nn.ModuleList(Layer(config, impl) for _ in range(config.num_layers))
        self.dense = DenseToken((len(schema.dense), d))
        self.fields = FieldEmbedding(schema, d, impl)
        self.head = Mlp((config.head_mlp_in, *config.head_mlp, 1))
        self.impl: Impl = impl

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B*m] of the candidates' labels."""
        mixed = self._append(batch) if self.config.mixing == "append" else self._concat(batch.per_impression())
        context = [self.dense(batch.dense), self.fields(batch.sparse).flatten(1)]
        logits: Tensor = self.head(torch.cat([mixed, *context], dim=-1)).squeeze(-1)
        return logits

    def _append(self, batch: Batch) -> Tensor:
        """The candidates' rows after one pass for each request, [B*m, d]."""
        sequence = batch.sequences[self.config.history.name]
        x = torch.cat(self.tokens(batch, sequence))
        for depth, layer in enumerate(self.layers, start=1):
            is_last = depth == len(self.layers)
            x = layer(x, sequence.offsets, sequence.max_length, batch.num_candidates, is_last)
        return x

    def _concat(self, impressions: Batch) -> Tensor:
        """The mean of each candidate's own pass over [h_t | c], [B*m, 2 d]."""
        sequence = impressions.sequences[self.config.history.name]
        history, candidates = self.tokens(impressions, sequence)
        x = torch.cat([history, candidates[row_of_each(sequence.offsets, history.shape[0])]], dim=-1)
        for layer in self.layers:
            x = layer(x, sequence.offsets, sequence.max_length)
        return ops.jagged_pool(x, sequence.offsets, max_length=sequence.max_length, impl=self.impl)
