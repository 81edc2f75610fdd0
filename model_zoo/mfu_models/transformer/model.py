"""Baseline transformer ranker, after BST (arXiv 1905.06874) and, by switches, SASRec (arXiv 1808.09781).

    e_t     = [item | sides]                                        [T+1, 2d], history then candidate
    Z       = e W_in + position                                     [T+1, d]
    Z'      = LN(Z + MHA(Z));  Z'' = LN(Z' + MLP(Z'))               L times, post-norm as BST has it
    score   = MLP([z_candidate | mean(z_history) | context])

With pre-norm, which is SASRec's, Z' = Z + MHA(LN(Z)) and Z'' = Z' + MLP(LN(Z')), L times, and Z = LN(Z) once more after
the last. Attention is BST's, both ways, or as SASRec's causal.

Readings. A position counts the events back from the candidate and is added; BST's is the time from event to request,
side by side with the item. GELU stands for BST's LeakyReLU and SASRec's ReLU. Pre-norm is the usual one: SASRec's
code (kang205/SASRec) norms queries but not keys and values, and its residuals add what was normed; its MLP is d wide.

Not in it: dropout, which costs no matrix work and makes runs differ; BST's flattened output, in whose place FuxiCTR's
mean over the history stands; SASRec's score, an inner product with the next item, and its scaling of items by sqrt(d).
"""

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.jagged import row_of_each
from mfu_kernels.registry import Impl
from mfu_models.batch import Batch, EventSequence
from mfu_models.common.config import num_context_tokens
from mfu_models.common.embedding import EventEmbedding, FieldEmbedding
from mfu_models.common.layers import DenseToken, JaggedSelfAttention, LayerNorm, Mlp
from mfu_models.common.requests import place_table

from .config import TransformerConfig
from .flops import DENSE_EXPANSION


class EncoderLayer(nn.Module):
    """Attention within the row, then an MLP on every token, each with a residual and a norm."""

    def __init__(self, config: TransformerConfig, impl: Impl) -> None:
        super().__init__()
        d = config.width
        self.attention = JaggedSelfAttention(d, config.num_heads, window=None, causal=config.causal, impl=impl)
        self.ffn = Mlp((d, config.expansion * d, d))
        self.attention_norm = LayerNorm(d, impl)
        self.ffn_norm = LayerNorm(d, impl)
        self.post_norm = config.norm_order == "post"

    def forward(self, z: Tensor, offsets: Tensor, max_length: int) -> Tensor:
        """[T, d] -> [T, d]."""
        if self.post_norm:
            z = self.attention_norm(self.attention(z, offsets, max_length), z)
            post: Tensor = self.ffn_norm(self.ffn(z), z)
            return post
        z = z + self.attention(self.attention_norm(z), offsets, max_length)
        pre: Tensor = z + self.ffn(self.ffn_norm(z))
        return pre


class TransformerRanker(nn.Module):
    """The whole model; ``forward(batch)`` gives logits [B]."""

    def __init__(self, config: TransformerConfig, impl: Impl = "auto") -> None:
        super().__init__()
        self.config = config
        d, schema = config.width, config.schema
        self.dense = DenseToken((len(schema.dense), DENSE_EXPANSION * d, d))
        self.fields = FieldEmbedding(schema, d, impl)
        self.events = EventEmbedding(schema, d, d // len(schema.sides), impl)
        self.project = nn.Linear(self.events.width, d)
        self.position = place_table(config.max_length + 1, d)
        self.layers = nn.ModuleList(EncoderLayer(config, impl) for _ in range(config.num_layers))
        self.norm = LayerNorm(d, impl) if config.norm_order == "pre" else None  # post-norm layers end with one
        self.head = Mlp(((2 + num_context_tokens(config.schema)) * d, *config.head_mlp, 1))
        self.impl: Impl = impl

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of the candidate's label."""
        sequence = batch.sequences[self.config.history.name]
        z, offsets, history_index, last = self._tokens(sequence, batch)
        for layer in self.layers:
            z = layer(z, offsets, sequence.max_length + 1)
        z = z if self.norm is None else self.norm(z)
        history = ops.jagged_pool(z[history_index], sequence.offsets, max_length=sequence.max_length, impl=self.impl)
        context = torch.cat([self.dense(batch.dense).unsqueeze(1), self.fields(batch.sparse)], dim=1)
        logits: Tensor = self.head(torch.cat([z[last], history, context.flatten(1)], dim=-1)).squeeze(-1)
        return logits

    def _tokens(self, sequence: EventSequence, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [T+B, d] with the candidate last in each row, their offsets [B+1], and where history [T] and
        candidates [B] lie among them."""
        rows = torch.arange(batch.num_impressions, device=batch.labels.device)
        offsets = sequence.offsets + torch.arange(batch.num_impressions + 1, device=rows.device)
        last = offsets[1:] - 1
        index = torch.arange(sequence.item_ids.shape[0], device=rows.device)
        row = row_of_each(sequence.offsets, index.shape[0])
        place = index + row
        order = torch.cat([place, last])
        items = torch.cat([sequence.item_ids, batch.candidate_items])
        sides = torch.cat([sequence.side_ids, batch.candidate_sides])
        recency = (last[torch.cat([row, rows])] - order).clamp(max=self.config.max_length)
        packed = self.project(self.events(items, sides)) + self.position(recency)
        tokens = torch.empty_like(packed).index_copy(0, order, packed)
        return tokens, offsets, place, last
