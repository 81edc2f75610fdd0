"""HSTU (arXiv 2402.17152) as a ranker, with the savings of ULTRA-HSTU (arXiv 2602.16986).

    x_t      = [item | sides] W_in + position + age (+ fields + dense W, of a candidate)   history, then m candidates
    U,Q,V,K  = split(SiLU(LN(X) W_uqvk))                      [N, H d_v], [N, H d_qk], [N, H d_v], [N, H d_qk]
    A        = SiLU(Q K^T / sqrt(d_qk)) V / N_max             pairs that the mask keeps; no softmax
    X        = X + [U | A | LN(A) * U] W_o                    L times (LN(A) * U alone, as the paper has it: a switch)
    score    = MLP(LN(x_candidate))

A token sees the tokens before it; the m candidates of a request see the history and themselves, not each other, so that
each scores as if it were alone and one pass over the history serves all. 1/N_max is the config's, never the batch's.

ULTRA-HSTU's switches: semi-local attention (the K1 keys that end with the query's own and the row's first K2, which its
notes name, not the paper's inequality; of a candidate, too, where TorchEasyRec's lets one see all of the history), and
attention truncation (later layers go on with the last n tokens). As in its paper an event is one token that holds item
and action, and a candidate's action is the unknown one. A third reading of the mask is that of Meta's own code
(meta-recsys/generative-recommenders, `hstu_ultra`): no first keys; a row's last `full_attn_size` tokens see all before
them instead; and its scores are scaled by 1/d_qk.

Attention begins nearly off where N_max is long and histories short: divided by N_max, A is small beside the root of its
norm's eps. Before training, LN(A) of rows of 1 to 8 events has a standard deviation of 0.5 to 0.6 at size tiny, 0.13 to
0.22 at base and 0.08 to 0.15 at large. Meta's code divides and norms alike.

Readings: SiLU is over all of U, V, Q and K, as in the paper, where the public code has it on U alone; the score reads
the candidate's token alone, where that code multiplies it with a map of the item; tokens and encodings are only added,
where DLRMv3 scales tokens by sqrt(d). The paper's relative bias of the scores, by position only, is a switch; by
default time and position are encodings added to the tokens, as in DLRMv3. The paper has no numeric features: here those
of a candidate join its token, as its fields do, so that models compare on the same inputs. The sizes' N counts the
candidate, and 8 tasks are one here.

The public code's layers work on all tokens, as they must where every event is a target. Here no score reads the
history's rows of the last layer: there they are keys and values alone, which gives the same scores and takes 3 to 26 %
off the project's size table. Their attention is computed for nothing still, and is in the model FLOPs: 4 to 14 % of
them, and 0.4 to 4 % in ULTRA-HSTU's sizes. The op has no form in which candidates alone ask.

Not in it: the relative bias by time, stochastic length, mixture of transducers, dropout, FP8.
"""

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.jagged import row_of_each
from mfu_kernels.registry import Impl
from mfu_models.batch import Batch, EventSequence
from mfu_models.common.layers import LayerNorm, Mlp
from mfu_models.common.requests import RequestTokens, place_table

from .config import HstuConfig
from .rows import RequestRows

NUM_AGES = 32  # an event's age in seconds by powers of 2: up to 68 years
EPS = 1e-6  # of the attention's norm: sums over few keys, divided by N_max, are small


class HstuLayer(nn.Module):
    """Pointwise projection, SiLU attention, gated output, with a residual."""

    def __init__(self, config: HstuConfig, impl: Impl) -> None:
        super().__init__()
        d, heads = config.width, config.num_heads
        scores, values = heads * config.qk_width, heads * config.v_width
        self.config = config
        self.parts = [values, scores]
        self.norm = LayerNorm(d, impl)
        self.uq = nn.Linear(d, values + scores)
        self.vk = nn.Linear(d, values + scores)
        self.bias = nn.Parameter(torch.zeros(heads, config.max_tokens)) if config.position_bias else None
        self.attention_norm = LayerNorm(values, impl, eps=EPS)
        self.out = nn.Linear((3 if config.concat_ux else 1) * values, d, bias=False)
        self.impl: Impl = impl

    def forward(self, x: Tensor, rows: RequestRows, *, only_candidates: bool = False) -> Tensor:
        """[T, d] -> [T, d], or of the candidates [B*m, d]: the history's rows are then keys and values alone."""
        config, normed = self.config, self.norm(x)
        read: Tensor | slice = rows.candidates() if only_candidates else slice(None)
        u, q = nn.functional.silu(self.uq(normed[read])).split(self.parts, dim=-1)
        v, k = nn.functional.silu(self.vk(normed)).split(self.parts, dim=-1)
        if isinstance(read, Tensor):  # the op wants a query of every token: what it gives for these is not read
            q = q.new_zeros(x.shape[0], q.shape[1]).index_copy(0, read, q)
        q, k, v = (part.unflatten(-1, (config.num_heads, -1)) for part in (q, k, v))
        mixed = ops.hstu_attention(
            q,
            k,
            v,
            rows.offsets,
            self.bias,
            norm_length=config.max_tokens,
            window=config.window,
            first_keys=config.first_keys if config.semi_local else 0,
            num_candidates=rows.num_candidates,
            max_length=rows.max_length,
            impl=self.impl,
        ).flatten(1)[read]
        gated = u * self.attention_norm(mixed)
        update: Tensor = self.out(torch.cat([u, mixed, gated], dim=-1) if config.concat_ux else gated)
        return x[read] + update


class Hstu(nn.Module):
    """The whole model; ``forward(batch)`` gives logits [B*m]."""

    def __init__(self, config: HstuConfig, impl: Impl = "auto") -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.tokens = RequestTokens(config.schema, d, config.max_tokens - 1, impl, project=True, context=True)
        self.age = place_table(NUM_AGES, d)
        self.layers = nn.ModuleList(HstuLayer(config, impl) for _ in range(config.num_layers))
        self.norm = LayerNorm(d, impl)
        self.head = Mlp((d, *config.head_mlp, 1))

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B*m] of the candidates' labels."""
        sequence = batch.sequences[self.config.history.name]
        rows = RequestRows.of(batch, sequence)
        history, candidates = self.tokens(batch, sequence)
        x = rows.join(history + self.age(self._ages(batch, sequence)), candidates, sequence.offsets)
        for depth, layer in enumerate(self.layers):
            if depth == self.config.truncated_after:
                places, rows = rows.last(self.config.tail_tokens - 1)
                x = x[places]
            x = layer(x, rows, only_candidates=depth == len(self.layers) - 1)
        logits: Tensor = self.head(self.norm(x)).squeeze(-1)
        return logits

    def _ages(self, batch: Batch, sequence: EventSequence) -> Tensor:
        """log2 of each event's age at its request's time, int64 [T]; an age below a second is 0."""
        row = row_of_each(sequence.offsets, sequence.item_ids.shape[0])
        seconds = (batch.times_ms[row] - sequence.times_ms).clamp(min=0) / 1000
        return torch.log2(1 + seconds).long().clamp(max=NUM_AGES - 1)
