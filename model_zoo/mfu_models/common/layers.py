"""Small layers that several models share."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.registry import Impl


class Mlp(nn.Module):
    """Linear layers with GELU between them and none after the last: [..., widths[0]] -> [..., widths[-1]]."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in turn."""
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else nn.functional.gelu(x))
        return x


class TokenMix(nn.Module):
    """A linear map over the token axis: [B, n, d] -> [B, m, d]."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in) * num_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of each sample with the same weights."""
        return torch.matmul(self.weight, x)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, of x or of x + residual."""

    def __init__(self, width: int, impl: Impl) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.impl: Impl = impl

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., d] -> [..., d]."""
        return ops.layer_norm(x, self.weight, self.bias, residual=residual, impl=self.impl)


class JaggedSelfAttention(nn.Module):
    """Multi-head self-attention within each jagged row, in a window or over the whole row, with output projection.

    The projections carry no bias: softmax cancels a key's bias, which would then never get a gradient.
    """

    def __init__(
        self, width: int, num_heads: int, *, window: int | None, causal: bool = False, impl: Impl = "auto"
    ) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.num_heads, self.window, self.causal = num_heads, window, causal
        self.impl: Impl = impl

    def forward(self, x: Tensor, offsets: Tensor, max_length: int, angles: Tensor | None = None) -> Tensor:
        """``x`` [T, d], ``offsets`` [B+1], ``angles`` [T, d_h/2] or None -> [T, d]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        mixed = ops.window_attention(
            q,
            k,
            v,
            offsets,
            window=self.window,
            causal=self.causal,
            angles=angles,
            max_length=max_length,
            impl=self.impl,
        )
        projected: Tensor = self.out(mixed.flatten(1))
        return projected
