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


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: Tensor | None = None,
    *,
    norm_length: int,
    alpha: float | None = None,
    window: int | None = None,
    first_keys: int = 0,
    num_candidates: int = 1,
) -> Tensor:
    alpha = 1 / math.sqrt(q.shape[-1]) if alpha is None else alpha
    done = []
    for row in rows(offsets):
        history = range(row.start, max(row.start, row.stop - num_candidates))
        for i in range(row.start, row.stop):
            here = min(i, history.stop)  # where a candidate stands: just behind the history
            near = [j for j in history if j < here and (window is None or here - j <= window)]
            first = [j for j in history[:first_keys] if j < here and j not in near]
            kept = [*first, *near, i]
            scores = alpha * torch.bmm(q[i, :, None], k[kept].permute(1, 2, 0))
            if bias is not None:
                away = [here - j for j in (*first, *near)] + [0]
                scores = scores + bias[:, None, [min(n, bias.shape[1] - 1) for n in away]]
            done.append(torch.bmm(ACTIVATIONS["silu"](scores) / norm_length, v[kept].transpose(0, 1))[:, 0])
    return torch.stack(done) if done else torch.zeros_like(v)


def cross_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    own_k: Tensor | None = None,
    own_v: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    done = []
    for b, row in enumerate(rows(offsets)):
        for m in range(q.shape[1]):
            keys, values = k[row], v[row]
            if own_k is not None and own_v is not None:
                keys, values = torch.cat([keys, own_k[b, m, None]]), torch.cat([values, own_v[b, m, None]])
            if len(keys):
                weights = softmax(scale * torch.bmm(q[b, m, :, None], keys.permute(1, 2, 0)))
                done.append(torch.bmm(weights, values.transpose(0, 1))[:, 0])
            else:
                done.append(torch.zeros_like(q[b, m]))
    return torch.stack(done).reshape(q.shape)


def seed_pooling(
    seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float | None = None, angles: Tensor | None = None
) -> Tensor:
    k = k if angles is None else rotary_time(k, angles)
    scale = 1 / math.sqrt(seeds.shape[-1]) if scale is None else scale
    out = seeds.new_zeros(offsets.numel() - 1, *seeds.shape)
    for b, row in enumerate(rows(offsets)):
        for h in range(seeds.shape[1]):
            if row.stop > row.start:
                out[b, :, h] = softmax(scale * (seeds[:, h] @ k[row, h].T)) @ v[row, h]
    return out


def seed_pooling_absorbed(
    seeds: Tensor, x: Tensor, w_k: Tensor, w_v: Tensor, offsets: Tensor, scale: float | None = None
) -> Tensor:
    scale = 1 / math.sqrt(seeds.shape[-1]) if scale is None else scale
    done = []
    for row in rows(offsets):
        heads = []
        for h in range(seeds.shape[1]):
            queries = seeds[:, h] @ w_k[h]
            weights = softmax(scale * (queries @ x[row].T)) if row.stop > row.start else queries @ x[row].T
            heads.append((weights @ x[row]) @ w_v[h].T)
        done.append(torch.stack(heads, dim=1))
    return torch.stack(done)


def sum_kron_linear(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return torch.stack([sum((z[r].T @ x[b]) @ w[r] for r in range(z.shape[0])) for b in range(x.shape[0])])


def jagged_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return torch.cat([x[row] @ weight[b] for b, row in enumerate(rows(offsets))])


def jagged_pool(values: Tensor, offsets: Tensor, mode: str = "mean") -> Tensor:
    sums = [values[row].sum(dim=0) / (max(1, row.stop - row.start) if mode == "mean" else 1) for row in rows(offsets)]
    return torch.stack(sums)


def jagged_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    return torch.cat([scores[:0], *(softmax(scores[row]) for row in rows(offsets) if row.stop > row.start)])


def jagged_gru(gates: Tensor, weight: Tensor, offsets: Tensor, attention: Tensor | None = None) -> Tensor:
    width = weight.shape[0]
    states = [gates[:0, :width]]
    for row in rows(offsets):
        state = gates.new_zeros(1, width)
        for t in range(row.start, row.stop):
            mapped = state @ weight
            update, reset = (1 / (1 + torch.exp(-gates[t] - mapped))).split(width, dim=1)[:2]
            proposed = torch.tanh(gates[t, 2 * width :] + reset * mapped[:, 2 * width :])
            update = update if attention is None else update * attention[t]
            state = (1 - update) * state + update * proposed
            states.append(state)
    return torch.cat(states)


def weighted_pool(values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    return torch.cat([weights[row][None] @ values[row] for row in rows(offsets)])


def hash_pool(values: Tensor, hashes: Tensor, query_hashes: Tensor, offsets: Tensor, bits: int) -> Tensor:
    buckets, wanted = (hashes >= 0).tolist(), (query_hashes >= 0).tolist()
    groups = [slice(i, i + bits) for i in range(0, hashes.shape[1], bits)]
    out = values.new_zeros(offsets.numel() - 1, len(groups), values.shape[1])
    for b, row in enumerate(rows(offsets)):
        for g, own in enumerate(groups):
            hits = [t for t in range(row.start, row.stop) if buckets[t][own] == wanted[b][own]]
            out[b, g] = values[hits].sum(dim=0)
    return out


def embedding(weight: Tensor, ids: Tensor, offsets: Tensor, vocabs: Sequence[int]) -> Tensor:
    out = weight.new_zeros(*ids.shape, weight.shape[1])
    for n, own in enumerate(ids.tolist()):
        for f, i in enumerate(own):
            out[n, f] = weight[offsets[f] : offsets[f + 1]][i]
    return out
