"""Seed pooling in Triton, backward: the packed keys are shared out evenly, whatever the rows' lengths.

A program takes one head and one stretch of keys, which may begin and end inside a row, and walks the rows in it. Each
key tile is read once; its scores are recomputed as k qᵀ, with keys along the longer side, so that few seeds waste no
tensor core; dK and dV of a tile are complete when they are written. The gradient of the seeds, which all rows share,
stays in registers from row to row: a program writes one fp32 share of it, and the shares are summed after, in order,
without atomics. Seeds beyond one block are further launches, which add to what the earlier ones left in fp32.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, config
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride

from .boundary import _bwd_outputs
from .kernel import LOG2_E, pieces, programs_wanted, seed_block, shape_key


@triton.jit
def _row_of(offsets, position, num_rows):
    """The row that holds packed key ``position``: the last whose offset is not beyond it."""
    low = tl.zeros([], dtype=tl.int64)
    high = low + num_rows
    while high - low > 1:
        middle = (low + high) // 2
        beyond = tl.load(offsets + middle) > position
        low = tl.where(beyond, low, middle)
        high = tl.where(beyond, middle, high)
    return low


@triton.jit
def seed_pooling_bwd_kernel(
    grad, seeds, k, v, offsets, out, highest, total, earlier_k, earlier_v, dk, dv, shares,
    num_rows, num_keys, num_heads, num_seeds, first_seed, width, seeds_s, seeds_h, k_t, k_h, v_t, v_h,
    scale, scale_log2, stretch,
    NEEDS_SEEDS: tl.constexpr, NEEDS_K: tl.constexpr, NEEDS_V: tl.constexpr, ADDS: tl.constexpr,
    D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dV = Pᵀ g; dP = g vᵀ; dS = P (dP - sum(g out)); dK = scale dSᵀ q; share of dQ = scale dS k."""
    head = tl.program_id(0) % num_heads
    walker = (tl.program_id(0) // num_heads).to(tl.int64)
    s = first_seed + tl.arange(0, BLOCK_S)
    n, dims = tl.arange(0, BLOCK_N), tl.arange(0, D)
    inside_s, inside_d = s < num_seeds, dims < width
    inside_sd = inside_s[:, None] & inside_d[None, :]
    queries = tl.load(seeds + head * seeds_h + s[:, None] * seeds_s + dims[None, :], mask=inside_sd, other=0.0)
    dqueries = tl.zeros([D, BLOCK_S], dtype=tl.float32)
    places_s = (s[:, None] * num_heads + head) * width + dims[None, :]
    places_k = head * k_h + n[:, None] * k_t + dims[None, :]
    places_v = head * v_h + n[:, None] * v_t + dims[None, :]
    places_n = (n[:, None] * num_heads + head) * width + dims[None, :]
    first, last = walker * stretch, tl.minimum((walker + 1) * stretch, num_keys)

    for row in range(_row_of(offsets, first, num_rows), _row_of(offsets, last - 1, num_rows) + 1):
        gradient = tl.load(grad + row * num_seeds * num_heads * width + places_s, mask=inside_sd, other=0.0)
        pooled = tl.load(out + row * num_seeds * num_heads * width + places_s, mask=inside_sd, other=0.0)
        delta = tl.sum(gradient.to(tl.float32) * pooled.to(tl.float32), axis=1)
        place = (row * num_heads + head) * num_seeds + s
        high = tl.load(highest + place, mask=inside_s, other=0.0)
        denominator = tl.load(total + place, mask=inside_s, other=float("inf"))
        inverse = 1.0 / tl.where(denominator > 0.0, denominator, 1.0)
        begin = tl.maximum(tl.load(offsets + row).to(tl.int64), first)
        end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), last)
        for start in range(begin, end, BLOCK_N):
            inside_n = n < end - start
            inside = inside_n[:, None] & inside_d[None, :]
            keys = tl.load(k + start * k_t + places_k, mask=inside, other=0.0)
            scores = tl.dot(keys, queries.T, input_precision="ieee")
            scores = tl.where(inside_n[:, None], scores, float("-inf"))
            weights = tl.exp2((scores - high[None, :]) * scale_log2) * inverse[None, :]
            tile = start * num_heads * width + places_n
            if NEEDS_V:
                change = tl.dot(weights.to(gradient.dtype), gradient, input_precision="ieee")
                if ADDS:
                    change += tl.load(earlier_v + tile, mask=inside, other=0.0)
                tl.store(dv + tile, change.to(dv.dtype.element_ty), mask=inside)
            if NEEDS_SEEDS or NEEDS_K:
                values = tl.load(v + start * v_t + places_v, mask=inside, other=0.0)
                dweights = tl.dot(values, gradient.T, input_precision="ieee")
                dscores = (weights * (dweights - delta[None, :])).to(keys.dtype)
                if NEEDS_K:
                    change = tl.dot(dscores, queries, input_precision="ieee") * scale
                    if ADDS:
                        change += tl.load(earlier_k + tile, mask=inside, other=0.0)
                    tl.store(dk + tile, change.to(dk.dtype.element_ty), mask=inside)
                if NEEDS_SEEDS:
                    dqueries = tl.dot(keys.T, dscores, dqueries, input_precision="ieee")
    if NEEDS_SEEDS:
        places = ((walker * num_heads + head) * width + dims[:, None]) * num_seeds + s[None, :]
        tl.store(shares + places, dqueries * scale, mask=inside_d[:, None] & inside_s[None, :])


def _backward_configs(key: MetaParameters) -> Sequence[triton.Config]:
    size = int(key["bytes"])
    if size == 4:
        return [config(4, 1, BLOCK_N=16), config(4, 2, BLOCK_N=32)]
    return [config(4, 2, BLOCK_N=64), config(8, 2, BLOCK_N=64), config(8, 2, BLOCK_N=128)]


BACKWARD = Kernel(seed_pooling_bwd_kernel, _backward_configs)


def backward(
    grad: Tensor, seeds: Tensor, k: Tensor, v: Tensor, offsets: Tensor, out: Tensor, softmax: Tensor,
    scale: float, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``seeds``, ``k`` and ``v``, those that are needed."""
    dseeds, dk, dv = _bwd_outputs(grad, seeds, k, v, offsets, out, softmax, scale, needs)
    num_keys, num_heads, width = k.shape
    if not num_keys:
        return dseeds.zero_(), dk, dv
    seeds, k, v = with_unit_stride(seeds), with_unit_stride(k), with_unit_stride(v)
    grad, offsets, key = grad.contiguous(), offsets.contiguous(), shape_key(seeds)
    num_walkers, stretch = pieces(num_keys, programs_wanted(k.device, num_heads))
    shares = softmax.new_empty(num_walkers, num_heads, width, len(seeds)) if needs[0] else dseeds
    block = seed_block(key)
    earlier_k, earlier_v = dk, dv
    for first_seed in range(0, len(seeds), block):
        ends = first_seed + block >= len(seeds)
        target_k, target_v = (tensor if ends else torch.empty_like(tensor, dtype=torch.float32) for tensor in (dk, dv))
        BACKWARD.launch(
            lambda _: (num_walkers * num_heads,), k.device,
            grad, seeds, k, v, offsets, out, *softmax, earlier_k, earlier_v, target_k, target_v, shares,
            len(out), num_keys, num_heads, len(seeds), first_seed, width,
            *seeds.stride()[:2], *k.stride()[:2], *v.stride()[:2], scale, scale * LOG2_E, stretch,
            key=key, NEEDS_SEEDS=needs[0], NEEDS_K=needs[1], NEEDS_V=needs[2], ADDS=first_seed > 0,
            D=key["d"], BLOCK_S=block,
        )  # fmt: skip
        earlier_k, earlier_v = target_k, target_v
    return shares.sum(0).permute(2, 0, 1).to(seeds.dtype) if needs[0] else dseeds, dk, dv
