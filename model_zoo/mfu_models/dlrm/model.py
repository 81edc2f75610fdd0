"""DLRMv2: DLRM (arXiv 1906.00091) with the low-rank cross layers of DCN-v2 (arXiv 2008.13535), as MLPerf runs it.

    x       = MLP_bottom(dense)                               [B, d]
    x_0     = [x | e_1 .. e_F | h_1 .. h_K]                   [B, D], D = (1 + F + K) d
    x_{l+1} = x_0 * (U_l V_l x_l + b_l) + x_l                 V_l: D -> r, U_l: r -> D
    score   = MLP_over(x_L)

e_f is the embedding of sparse field f and h_k the mean of history k's event embeddings (as a switch their sum), in
place of MLPerf's fields of several ids. The candidate is what its fields say, in tables that histories do not share;
the synthetic source's hold attributes of its item, not the item. GELU stands for ReLU; none follows the bottom MLP.
Not in it: DLRM's first interaction, the dot products of all pairs of tokens; DCN-v2's mixture of experts and the
nonlinearity within a low-rank map.
"""

from torch import Tensor, nn

from mfu_kernels.registry import Impl
from mfu_models.batch import Batch
from mfu_models.common.layers import CrossLayer, Mlp
from mfu_models.common.pooled_tokens import PooledTokens, num_pooled_tokens

from .config import DlrmConfig


class Dlrm(nn.Module):
    """The whole model; ``forward(batch)`` gives logits [B]."""

    def __init__(self, config: DlrmConfig, impl: Impl = "auto") -> None:
        super().__init__()
        self.config = config
        flat = num_pooled_tokens(config.schema) * config.width
        self.tokens = PooledTokens(config.schema, config.width, config.bottom_mlp, pooling=config.pooling, impl=impl)
        self.cross = nn.ModuleList(CrossLayer(flat, config.cross_rank) for _ in range(config.num_cross))
        self.over = Mlp((flat, *config.over_mlp, 1))

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of the candidate's label."""
        x0 = x = self.tokens(batch).flatten(1)
        for layer in self.cross:
            x = layer(x0, x)
        logits: Tensor = self.over(x).squeeze(-1)
        return logits
