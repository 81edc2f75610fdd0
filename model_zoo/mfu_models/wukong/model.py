"""Wukong (arXiv 2403.02545): a stack of factorisation machines whose order of interaction doubles with each layer.

    X_0     = [MLP(dense) | e_1 .. e_F | h_1 .. h_K]          [B, n_0, d], n_0 = 1 + F + K
    FMB     = reshape(MLP(LN(flatten(X (X^T Y)))))            [B, n_F, d], Y [n, k]
    LCB     = W X                                             [B, n_L, d]
    X'      = LN([FMB | LCB] + R X)                           [B, n_F + n_L, d], R the identity where n = n_F + n_L
    score   = MLP(flatten(X_L))

e_f is the embedding of sparse field f and h_k the mean of history k's event embeddings. The candidate is what its
fields say, in tables that histories do not share; the synthetic source's hold attributes of its item, not the item.
With Y fixed, norms and activations apart, a layer's tokens are polynomials of twice the degree of those before it.

Y is attentive by default: Y = MLP(flatten(W_y X)), with W_y [c, n] and one hidden layer of width k. The paper says that
an MLP makes Y from linearly compressed input, not of which sizes; these are small: the ladder of sizes was laid out
without them, and they add less than 1 % to its FLOPs. ``y="fixed"`` makes Y a parameter, as public code has it. GELU
stands for the paper's ReLU. The paper has no histories; here each joins the pooled features as a token.
Not in it: several tokens for an important feature's embedding, and a part of one for others.
"""

from torch import Tensor, nn

from mfu_kernels.registry import Impl
from mfu_models.batch import Batch
from mfu_models.common.layers import Mlp
from mfu_models.common.pooled_tokens import PooledTokens
from mfu_models.common.wukong import WukongBlock

from .config import WukongConfig


class Wukong(nn.Module):
    """The whole model; ``forward(batch)`` gives logits [B]."""

    def __init__(self, config: WukongConfig, impl: Impl = "auto") -> None:
        super().__init__()
        self.config = config
        self.tokens = PooledTokens(config.schema, config.width, config.dense_mlp, impl=impl)
        self.layers = nn.ModuleList(WukongBlock(shape, impl) for shape in config.blocks)
        self.head = Mlp(config.head_widths)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of the candidate's label."""
        x = self.tokens(batch)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x.flatten(1)).squeeze(-1)
        return logits
