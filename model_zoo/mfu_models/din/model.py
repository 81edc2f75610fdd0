"""DIN (arXiv 1706.06978): a user is the sum of past events, each weighed against the candidate.

    h_t     = [item | sides] of event t                       [T, e];  c the same of the candidate, [B, e]
    a_t     = MLP([c | h_t | c - h_t | c * h_t])              [T], the local activation unit
    u       = sum over t of a_t h_t                           [B, e]
    score   = MLP([u | c | context fields | dense])           context [B, F e]

The a_t are not normalised (``softmax`` as a switch): their sum says how much the history has to do with the candidate.

With ``dien``, DIEN (arXiv 1809.03672) takes the sum's place:

    h_t     = GRU(e_t)                                        [T, h], from the events e_t
    a_t     = softmax over t of h_t^T W c                     [T]
    h'_t    = (1 - a_t z_t) h'_{t-1} + a_t z_t h~'_t          [T, h], AUGRU over h_t: its update gate z_t is scaled
    u       = [h' after the last event | mean over t of e_t]  [B, h + e]
    loss   += mean over t of BCE(MLP([h_{t-1} | e_t]), 1) + BCE(MLP([h_{t-1} | e']), 0), times aux_weight

In training the model gives a `TrainingOutput`, else logits.

The authors' code (mouna99/dien, `script/model.py`) has the events' sum beside h' and batch norm on all that the head
reads, which brings the two to one scale. Batch norm makes a sample's score depend on its batch and is left out; without
it a long history's sum is up to hundreds of times as long as h', so the mean stands in its place.

Readings: c - h_t is code's, where a figure of DIN's shows an outer product. The auxiliary loss tells each event from
another by the state before it, the first one by h_0 = 0, which the paper leaves out: so n events make n pairs. Its
negatives e' are the batch's events of other items in place of sampled items. Its network reads h + e numbers; the
project's size table counted 2h, 6 % more of the training forward at large and 4 % at xl, where h = 2e (elsewhere they
are the same).

Not in it: Dice and PReLU, in whose place GELU stands, for Dice makes a sample's score depend on its batch; DIN's
mini-batch aware regularisation. The dense features, which neither paper has, join the head as they are.
"""

import torch
from torch import Tensor, nn

from mfu_kernels.registry import Impl
from mfu_models.batch import Batch
from mfu_models.common.embedding import FieldEmbedding, event_embedding
from mfu_models.common.layers import Mlp
from mfu_models.common.target_attention import TargetAttention
from mfu_models.output import TrainingOutput

from .config import DinConfig
from .evolution import Interest, InterestEvolution


class Din(nn.Module):
    """The whole model; ``forward(batch)`` gives logits [B], or with ``dien`` in training a `TrainingOutput`."""

    interest: TargetAttention | InterestEvolution

    def __init__(self, config: DinConfig, impl: Impl = "auto") -> None:
        super().__init__()
        self.config = config
        self.events = event_embedding(config.schema, config.width, impl)
        self.fields = FieldEmbedding(config.schema, config.width, impl)
        if config.dien:
            self.interest = InterestEvolution(config, impl)
        else:
            self.interest = TargetAttention(config.width, config.att_mlp, softmax=config.softmax, impl=impl)
        self.head = Mlp(config.head_widths)

    def forward(self, batch: Batch) -> Tensor | TrainingOutput:
        """Logits [B] of the candidate's label."""
        sequence = batch.sequences[self.config.history.name]
        target = self.events(batch.candidate_items, batch.candidate_sides)
        interest = self.interest(self.events.of(sequence), target, sequence)
        user, auxiliary_loss = interest if isinstance(interest, Interest) else (interest, None)
        context = self.fields(batch.sparse).flatten(1)
        logits: Tensor = self.head(torch.cat([user, target, context, batch.dense], dim=-1)).squeeze(-1)
        if auxiliary_loss is None:
            return logits
        return TrainingOutput(logits, self.config.aux_weight * auxiliary_loss)
