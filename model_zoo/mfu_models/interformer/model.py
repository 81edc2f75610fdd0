"""InterFormer (arXiv 2411.09852, sections 4.1 to 4.4 and appendix A).

    X       = [MLP(dense) | fields]                                    [B, n, d]
    S       = MaskNet([S_1 | .. | S_k])                                [T, d]   aligned on the most recent events
    X_sum   = Gating(MLP(X))                                           [B, n_sum, d]
    S       = [X_sum as CLS | S]                                       [N, d]   before the first layer only
  L times:
    S       = LN(S' + MHA(S')),  S' = LN(S + (X_sum W) S)              RoPE; X_sum W is the sample's own [d, d]
    S_sum   = Gating([CLS of S | PMA(S) | K most recent of S])         [B, n_s, d]
    X       = LN(X + MLP(Interaction([X | S_sum])))                    DOT, DCN, or DHEN = both
    X_sum   = Gating(MLP(X))
    score   = MLP([X_sum | S_sum])

Context reaches the events through X_sum W and the CLS tokens, events reach the context through S_sum. CLS tokens are
the first num_cls tokens of X_sum, which are all of them in the paper. The candidate is part of X: what its fields say,
in tables that events do not share; the synthetic source's hold attributes of its item, not the item.

Readings. `order`: as printed, a layer's arches work on summaries of the layer's input, and the head reads the last
layer's summaries, so that nothing reads that layer's arches. "sequence_first" summarises what the arches gave instead,
which takes no more summaries of S than layers; "parallel" has the printed order, and the head reads summaries of the
last output: one more summary of S, 9 % of the FLOPs at size tiny and 4 % at large and xl. `gate`: σ(X ⊙ MLP(X)) as
printed, or X ⊙ σ(MLP(X)). What makes a sample's matrix of X_sum is an MLP in section 4.3 and a linear map in appendix
A.2.2, as it is here. Residuals and norms around both steps of S are not printed; implementations add them, and without
them S has no more rank than X_sum.

Plainer than the paper: GELU stands for appendix B's Swish; MaskNet's MLP_mask and MLP_lce and the gate's MLP are one
matrix each. Inner products of tokens and X_sum W are scaled by d^-1/2, which is not printed.

The sizes have k e = d, so that merging two histories costs what one history of width d would. Not in it: the two-layer
PFFN of later production models (Kunlun has it as GDPA), several layers within DHEN, dropout.
"""

import torch
from torch import Tensor, nn

from mfu_kernels.registry import Impl
from mfu_models.batch import Batch
from mfu_models.common.embedding import EventEmbedding, FieldEmbedding
from mfu_models.common.layers import DenseToken, Mlp
from mfu_models.common.merging import Alignment, MaskNet

from .arches import ContextSummary, InteractionArch, SequenceArch, SequenceSummary
from .config import InterFormerConfig
from .flops import DENSE_EXPANSION
from .rows import Rows

ROPE_BASE = 10_000.0


class InterFormer(nn.Module):
    """The whole model; ``forward(batch)`` gives logits [B]."""

    theta: Tensor

    def __init__(self, config: InterFormerConfig, impl: Impl = "auto") -> None:
        super().__init__()
        self.config = config
        d, schema, layers = config.width, config.schema, range(config.num_layers)
        num_sides, side_width = len(schema.sides), config.side_width
        self.dense = DenseToken((len(schema.dense), DENSE_EXPANSION * d, d))
        self.fields = FieldEmbedding(schema, d, impl)
        self.events = EventEmbedding(schema, config.event_width - num_sides * side_width, side_width, impl)
        self.merge = MaskNet(len(schema.sequences) * config.event_width, d)
        self.interactions = nn.ModuleList(InteractionArch(config, impl) for _ in layers)
        self.sequences = nn.ModuleList(SequenceArch(config, impl) for _ in layers)
        self.context_summaries = nn.ModuleList(ContextSummary(config) for _ in range(config.num_layers + 1))
        self.sequence_summaries = nn.ModuleList(
            SequenceSummary(config, impl) for _ in range(config.num_sequence_summaries)
        )
        self.head = Mlp(((config.num_summary + config.num_sequence_summary) * d, *config.head_mlp, 1))
        pairs = d // config.num_heads // 2
        theta = ROPE_BASE ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
        self.register_buffer("theta", theta, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of the candidate's label."""
        x = torch.cat([self.dense(batch.dense).unsqueeze(1), self.fields(batch.sparse)], dim=1)
        x_sum = self.context_summaries[0](x)
        s, rows = self._history(batch, x_sum)
        angles = rows.positions()[:, None] * self.theta
        s_sums = [self.sequence_summaries[0](s, rows)] if self.config.order == "parallel" else []
        for layer, (interaction, sequence) in enumerate(zip(self.interactions, self.sequences, strict=True)):
            s = sequence(s, x_sum, rows, angles)
            s_sums.append(self.sequence_summaries[len(s_sums)](s, rows))
            x = interaction(x, s_sums[layer])  # of this layer's history, or in parallel order of the one before
            x_sum = self.context_summaries[layer + 1](x)
        logits: Tensor = self.head(torch.cat([x_sum, s_sums[-1]], dim=1).flatten(1)).squeeze(-1)
        return logits

    def _history(self, batch: Batch, x_sum: Tensor) -> tuple[Tensor, Rows]:
        """Merged events with the CLS tokens before each row, [N, d]."""
        sequences = [batch.sequences[field.name] for field in self.config.schema.sequences]
        merged = Alignment.of(sequences)
        events = self.merge(merged.join([self.events.of(sequence) for sequence in sequences]))
        rows = Rows.of(merged, self.config.num_cls)
        return rows.prepend(x_sum[:, : rows.num_cls], events), rows
