"""The Wukong block (arXiv 2403.02545), which Wukong stacks and Kunlun runs as its interaction experts.

    FMB(X) = reshape(MLP(LN(flatten(X (X^T Y)))))            [B, n_F, d]: all pairs of tokens, condensed by Y [n, k]
    LCB(X) = W X                                             [B, n_L, d]
    out    = LN([FMB(X) | LCB(X)] + R X)                     R X = X where n = n_F + n_L, else a linear map over tokens

Every pair's product enters X X^T, but only X (X^T Y) is computed: 4 n k d FLOPs instead of 2 n^2 (d + k).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mfu_kernels.registry import Impl

from .flops import linear, mlp
from .layers import LayerNorm, Mlp, TokenMix, drawn, for_each_sample


@dataclass(frozen=True, slots=True)
class BlockShape:
    """Sizes of one block: n ``num_tokens``, d ``width``, n_F ``num_fm``, n_L ``num_linear``, k ``rank``.

    ``fm_mlp`` are the hidden widths of the factorisation's MLP. With ``y_tokens`` c > 0, Y is attentive: made from the
    sample's tokens compressed to c; with 0 it is a parameter.
    """

    num_tokens: int
    width: int
    num_fm: int
    num_linear: int
    rank: int
    fm_mlp: tuple[int, ...]
    y_tokens: int = 0

    @property
    def num_out(self) -> int:
        """Tokens after the block."""
        return self.num_fm + self.num_linear

    @property
    def fm_widths(self) -> tuple[int, ...]:
        """All widths of the factorisation's MLP."""
        return (self.num_tokens * self.rank, *self.fm_mlp, self.num_fm * self.width)

    @property
    def y_widths(self) -> tuple[int, ...]:
        """All widths of the MLP that makes Y."""
        return (self.y_tokens * self.width, self.rank, self.num_tokens * self.rank)

    def flops(self) -> dict[str, int]:
        """Forward model FLOPs of one sample by component."""
        n, d = self.num_tokens, self.width
        return {
            "fm": 4 * n * d * self.rank,
            "fm_mlp": mlp(1, self.fm_widths),
            "linear": linear(d, n, self.num_linear),
            "residual": linear(d, n, self.num_out) if n != self.num_out else 0,
            "y": linear(d, n, self.y_tokens) + mlp(1, self.y_widths) if self.y_tokens else 0,
        }


class AttentiveY(nn.Module):
    """Y from the sample: its tokens, linearly compressed to few, through a small MLP: [B, n, d] -> [B, n, k]."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.compress = TokenMix(shape.num_tokens, shape.y_tokens)
        self.mlp = Mlp(shape.y_widths)
        self.rank = shape.rank

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, d] -> [B, n, k]."""
        y: Tensor = self.mlp(self.compress(x).flatten(1)).unflatten(-1, (-1, self.rank))
        return y


class WukongBlock(nn.Module):
    """FMB and LCB side by side, with residual and norm: [B, n, d] -> [B, n_F + n_L, d]."""

    def __init__(self, shape: BlockShape, impl: Impl) -> None:
        super().__init__()
        n, d, k = shape.num_tokens, shape.width, shape.rank
        self.y = AttentiveY(shape) if shape.y_tokens else drawn(n, k, std=n**-0.5)
        self.fm_norm = LayerNorm(n * k, impl)
        self.fm_mlp = Mlp(shape.fm_widths)
        self.compress = TokenMix(n, shape.num_linear)
        self.residual = TokenMix(n, shape.num_out) if n != shape.num_out else None
        self.norm = LayerNorm(d, impl)
        self.num_fm = shape.num_fm

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, d] -> [B, n_F + n_L, d]."""
        # As yᵀ x: tokens stay rows, and no tensor of x's size is transposed, forward or backward.
        y = self.y(x) if isinstance(self.y, AttentiveY) else for_each_sample(self.y, x)
        mixed = torch.bmm(y.mT, x)
        interactions = torch.bmm(x, mixed.mT)
        fm = self.fm_mlp(self.fm_norm(interactions.flatten(1))).unflatten(-1, (self.num_fm, -1))
        residual = x if self.residual is None else self.residual(x)
        normed: Tensor = self.norm(torch.cat([fm, self.compress(x)], dim=1), residual)
        return normed
