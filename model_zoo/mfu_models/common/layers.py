"""Small layers that several models share."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

import mfu_kernels as ops
from mfu_kernels.cost import once_for_batch
from mfu_kernels.precision import matmul_dtype
from mfu_kernels.registry import Impl

GELU_MOMENT = 0.425  # mean square of GELU of a standard normal number


def drawn(*shape: int, std: float) -> nn.Parameter:
    """A parameter of normal numbers around 0."""
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))


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


class DenseToken(Mlp):
    """A token of standardised numeric features, of unit length on average, as ids' are: [..., n] -> [..., d].

    As PyTorch draws it, it is from 0.4 to 5 long, the longer the wider it is and the fewer hidden layers it has; beside
    the longest hardly counts what it is added to or mixed with. Here each hidden layer has unit variance, of which GELU
    leaves ``GELU_MOMENT``.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(widths)
        moment = 1.0
        for layer, (num_in, num_out) in zip(self.layers, pairwise(widths), strict=True):
            variance = 1 / num_out if layer is self.layers[-1] else 1.0
            layer = cast(nn.Linear, layer)
            nn.init.normal_(layer.weight, std=(variance / (moment * max(1, num_in))) ** 0.5)
            nn.init.zeros_(layer.bias)
            moment = GELU_MOMENT


def for_each_sample(weight: Tensor, x: Tensor) -> Tensor:
    """``weight`` [m, n] to be multiplied by each sample of ``x`` [B, n, d]: [B, m, n], which no copy repeats."""
    return weight.to(matmul_dtype(x)).expand(x.shape[0], -1, -1)  # autocast itself would cast the repeated ones


class TokenMix(nn.Module):
    """A linear map over the token axis: [B, n, d] -> [B, m, d]."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weight = drawn(num_out, num_in, std=num_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of each sample with the same weights."""
        return torch.bmm(for_each_sample(self.weight, x), x)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, of x or of x + residual."""

    def __init__(self, width: int, impl: Impl, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps
        self.impl: Impl = impl

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., d] -> [..., d]."""
        return ops.layer_norm(x, self.weight, self.bias, residual=residual, eps=self.eps, impl=self.impl)


class CrossLayer(nn.Module):
    """DCNv2's low-rank cross, x_{l+1} = x_0 * (U V x_l + b) + x_l: each raises the polynomial degree in x_0 by one."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.v = nn.Linear(width, rank, bias=False)
        self.u = nn.Linear(rank, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """[B, D] and [B, D] -> [B, D]."""
        crossed: Tensor = x0 * self.u(self.v(x)) + x
        return crossed


class SeedAttention(nn.Module):
    """Learned seeds attend to each jagged row: MHA(LN(E), S, S), the pooling by attention of Set Transformer (PMA).

    The projections carry no bias, as in `JaggedSelfAttention`.
    """

    def __init__(self, num_seeds: int, width: int, num_heads: int, impl: Impl) -> None:
        super().__init__()
        self.seeds = drawn(num_seeds, width, std=1.0)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.num_heads = num_heads
        self.impl: Impl = impl

    def _queries(self) -> Tensor:
        projected: Tensor = self.q(ops.layer_norm(self.seeds, impl=self.impl))
        queries: Tensor = projected.unflatten(-1, (self.num_heads, -1))
        return queries

    def forward(self, x: Tensor, offsets: Tensor, max_length: int, angles: Tensor | None = None) -> Tensor:
        """``x`` [T, d], ``angles`` [T, d_h/2] that rotate the keys, or None -> [B, num_seeds, d]."""
        queries = once_for_batch(self._queries, num_samples=offsets.shape[0] - 1)
        kv = self.kv(x).unflatten(-1, (2, self.num_heads, -1))
        pooled = ops.seed_pooling_kvpacked(queries, kv, offsets, angles=angles, max_length=max_length, impl=self.impl)
        tokens: Tensor = self.out(pooled.flatten(2))
        return tokens


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
        mixed = ops.window_attention_qkvpacked(
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)),
            offsets,
            window=self.window,
            causal=self.causal,
            angles=angles,
            max_length=max_length,
            impl=self.impl,
        )
        projected: Tensor = self.out(mixed.flatten(1))
        return projected
