"""What each op must compute, as loops over rows, heads and queries with nothing padded or masked.

They share no code with the package, and under FlopCounterMode they execute just what the model FLOPs count.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: torch.where(x > 0, x, 0),
    "relu2": lambda x: torch.where(x > 0, x * x, 0),
    "leaky_relu": lambda x: torch.where(x > 0, x, x / 100),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "identity": lambda x: x,
}


def rows(offsets: Tensor) -> Iterator[slice]:
    """Where each row lies."""
    for start, end in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
        yield slice(start, end)


def softmax(scores: Tensor) -> Tensor:
    weights = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return weights / weights.sum(dim=-1, keepdim=True)


def gdpa(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float = 1.0, activation: str | Sequence[str] = "gelu_tanh"
) -> Tensor:
    num_heads = q.shape[1]
    names = [activation] * num_heads if isinstance(activation, str) else activation
    done = []
    for b, row in enumerate(rows(offsets)):
        heads = [ACTIVATIONS[names[h]](scale * (q[row, h] @ k[b, :, h].T)) @ v[b, :, h] for h in range(num_heads)]
        done.append(torch.stack(heads, dim=1))
    return torch.cat(done)


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    normed = x / ((x * x).sum(dim=-1, keepdim=True) / x.shape[-1] + eps) ** 0.5
    return normed if weight is None else normed * weight


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    x = x if residual is None else x + residual
    normed = rms_norm(x - x.sum(dim=-1, keepdim=True) / x.shape[-1], weight, eps)
    return normed if bias is None else normed + bias


def gdpa_block(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    scale: float = 1.0,
    activation: str | Sequence[str] = "gelu_tanh",
    eps: float = 1e-5,
) -> Tensor:
    queries = layer_norm(x.flatten(1), eps=eps).reshape(x.shape)
    inner = gdpa(queries, k, v, offsets, scale, activation) + queries
    return x + rms_norm(inner.flatten(1), eps=eps).reshape(x.shape)


def rotary_time(x: Tensor, angles: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.view_as_complex(torch.stack((x[..., :half], x[..., half:]), dim=-1))
    turned = turned * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    window: int | None,
    causal: bool = False,
    scale: float | None = None,
    angles: Tensor | None = None,
) -> Tensor:
    if angles is not None:
        q, k = rotary_time(q, angles), rotary_time(k, angles)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    out = torch.empty_like(q)
    for row in rows(offsets):
        for i in range(row.start, row.stop):
            kept = [j for j in range(row.start, row.stop) if window is None or abs(i - j) <= window]
            kept = [j for j in kept if not causal or j <= i]
            for h in range(q.shape[1]):
                weights = softmax(scale * (q[i : i + 1, h] @ k[kept, h].T))
                out[i, h] = (weights @ v[kept, h])[0]
    return out


def seed_pooling(seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float | None = None) -> Tensor:
    scale = 1 / math.sqrt(seeds.shape[-1]) if scale is None else scale
    out = seeds.new_zeros(offsets.numel() - 1, *seeds.shape)
    for b, row in enumerate(rows(offsets)):
        for h in range(seeds.shape[1]):
            if row.stop > row.start:
                out[b, :, h] = softmax(scale * (seeds[:, h] @ k[row, h].T)) @ v[row, h]
    return out


def sum_kron_linear(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return torch.stack([sum((z[r].T @ x[b]) @ w[r] for r in range(z.shape[0])) for b in range(x.shape[0])])


def jagged_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return torch.cat([x[row] @ weight[b] for b, row in enumerate(rows(offsets))])


def jagged_pool(values: Tensor, offsets: Tensor, mode: str = "mean") -> Tensor:
    sums = [values[row].sum(dim=0) / (max(1, row.stop - row.start) if mode == "mean" else 1) for row in rows(offsets)]
    return torch.stack(sums)
