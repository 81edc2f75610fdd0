"""SDIM (arXiv 2205.10249): which events of a long history count for a candidate is decided by hashing alone.

    s_j     = [item | sides] of event j of the long history   [T, d];  q the same of the candidate, [B, d]
    h(x)    = sign(R x), R [m, d] from N(0, 1), fixed         m bits in m / tau groups
    p_ij    = 1 if the tau bits of group i agree on q and s_j, else 0
    v       = mean over groups i of l2( sum over j of p_ij s_j )   [B, d]; without l2 as a switch
    u       = DIN's sum over the short history                [B, d], see `TargetAttention`
    score   = MLP([v | u | q | context fields | dense])       context [B, F d]

Over draws of R a group agrees with probability (1 - arccos(cos(q, s_j)) / pi)^tau, so v approximates attention with
those weights before the l2. R is no parameter and hashes have no gradient: it flows through the events that are summed.
A hash of 0 counts as positive. The long history is all that the user was shown, where the source tells, and the short
one is what the user engaged with last; the paper takes both from one log.

FLOPs: hashing costs 2 d m for each event and the candidate, forward only. Putting events in buckets takes (m / tau) d
additions for each event; they multiply nothing and are not in the model FLOPs. The project's size table counted one for
each addition, and so has 6, 9, 6, 3 and 3 % more from tiny to xl.

Not in it: the server that keeps the bucket sums of each user in production, and the fast transform in place of R x.
"""

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.registry import Impl
from mfu_models.batch import Batch, EventSequence
from mfu_models.common.embedding import FieldEmbedding, event_embedding
from mfu_models.common.layers import Mlp
from mfu_models.common.target_attention import TargetAttention

from .config import SdimConfig


class HashAttention(nn.Module):
    """The mean over groups of the (normalised) sum of those events that share the candidate's bucket."""

    projection: Tensor

    def __init__(self, config: SdimConfig, impl: Impl) -> None:
        super().__init__()
        self.register_buffer("projection", torch.empty(config.width, config.num_hashes).normal_())
        self.bits, self.l2_norm = config.hash_bits, config.l2_norm
        self.impl: Impl = impl

    def forward(self, events: Tensor, target: Tensor, sequence: EventSequence) -> Tensor:
        """``events`` [T, d] of ``sequence``, ``target`` [B, d] -> [B, d]; zeros where no event collides."""
        with torch.no_grad():
            hashes, target_hashes = events @ self.projection, target @ self.projection
        sums = ops.hash_pool(
            events,
            hashes,
            target_hashes,
            sequence.offsets,
            bits=self.bits,
            max_length=sequence.max_length,
            impl=self.impl,
        )
        groups = nn.functional.normalize(sums, dim=-1) if self.l2_norm else sums
        return groups.mean(dim=1)


class Sdim(nn.Module):
    """The whole model; ``forward(batch)`` gives logits [B]."""

    def __init__(self, config: SdimConfig, impl: Impl = "auto") -> None:
        super().__init__()
        self.config = config
        self.events = event_embedding(config.schema, config.width, impl)
        self.fields = FieldEmbedding(config.schema, config.width, impl)
        self.long = HashAttention(config, impl)
        self.short = TargetAttention(config.width, config.att_mlp, impl=impl)
        self.head = Mlp(config.head_widths)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of the candidate's label."""
        target = self.events(batch.candidate_items, batch.candidate_sides)
        long, short = (batch.sequences[h.name] for h in (self.config.long_history, self.config.short_history))
        of_long = self.long(self.events.of(long), target, long)
        of_short = self.short(self.events.of(short), target, short)
        context = self.fields(batch.sparse).flatten(1)
        logits: Tensor = self.head(torch.cat([of_long, of_short, target, context, batch.dense], dim=-1)).squeeze(-1)
        return logits
