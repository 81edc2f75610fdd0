"""Seed pooling in Triton, backward: the packed keys are shared out evenly, whatever the rows' lengths.

A program takes one head and one stretch of keys, which may begin and end inside a row, and walks the rows in it. Each
key tile is read once; its scores are recomputed with the seeds as rows, as forward has them, so that a row's statistics
are a register or two of a thread; dK and dV of a tile are made transposed, d long, so that few seeds waste no tensor
core, and are complete when they are written. The gradient of the seeds, which all rows share, stays in registers from
row to row: a program writes one fp32 share of it, and the shares are summed after, in order, without atomics. Seeds
beyond one block are further launches, which add to what the earlier ones left in fp32.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.boundary import apart
from mfu_kernels.launching import Kernel, config
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rotary_time.device import columns_of, turned_back
from mfu_kernels.rows import with_unit_stride

from .boundary import _bwd_outputs
from .kernel import LOG2_E, constants_of, load_keys, pieces, programs_wanted, seed_block, shape_key


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
    grad, seeds, k, v, angles, offsets, out, highest, total, earlier_k, earlier_v, dk, dv, shares,
    num_rows, num_keys, num_seeds, first_seed, seeds_s, seeds_h, k_h, v_h, scale, scale_log2, stretch,
    NEEDS_SEEDS: tl.constexpr, NEEDS_K: tl.constexpr, NEEDS_V: tl.constexpr, ADDS: tl.constexpr,
    ROTATED: tl.constexpr, NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, ANGLE_STRIDE: tl.constexpr, D_STRIDE: tl.constexpr,
    D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dV = Pᵀ g; dP = g vᵀ; dS = P (dP - sum(g out)); dK = scale dSᵀ q; share of dQ = scale dS k.

    A softmax's denominator divides its g, once a row, in place of each of its weights.
    """
    head = (tl.program_id(0) % NUM_HEADS).to(tl.int64)
    walker = (tl.program_id(0) // NUM_HEADS).to(tl.int64)
    s = first_seed + tl.arange(0, BLOCK_S)
    n, dims = tl.arange(0, BLOCK_N), tl.arange(0, D)
    inside_s, inside_d = s < num_seeds, dims < WIDTH
    inside_sd = inside_s[:, None] & inside_d[None, :]
    columns, inside_c = columns_of(WIDTH, D, ROTATED)
    inside_sc = inside_s[:, None] & inside_c[None, :]
    queries = tl.load(seeds + head * seeds_h + s[:, None] * seeds_s + columns[None, :], mask=inside_sc, other=0.0)
    dqueries = tl.zeros([BLOCK_S, D], dtype=tl.float32)
    places_s = s[:, None].to(tl.int64) * (NUM_HEADS * WIDTH) + dims[None, :]
    k += head * k_h
    v += head * v_h
    places_v = n[:, None].to(tl.int64) * V_STRIDE + dims[None, :]
    places_dk = n[:, None].to(tl.int64) * D_STRIDE + columns[None, :]
    places_dv = n[:, None].to(tl.int64) * D_STRIDE + dims[None, :]
    first, last = walker * stretch, tl.minimum((walker + 1) * stretch, num_keys)

    for row in range(_row_of(offsets, first, num_rows), _row_of(offsets, last - 1, num_rows) + 1):
        own = (row * num_seeds * NUM_HEADS + head) * WIDTH
        place = (row * NUM_HEADS + head) * num_seeds + s
        level = tl.load(highest + place, mask=inside_s, other=float("inf")) * scale_log2
        denominator = tl.load(total + place, mask=inside_s, other=1.0)
        inverse = 1.0 / tl.where(denominator > 0.0, denominator, 1.0)
        gradient = tl.load(grad + own + places_s, mask=inside_sd, other=0.0)
        gradient = (gradient.to(tl.float32) * inverse[:, None]).to(gradient.dtype)
        pooled = tl.load(out + own + places_s, mask=inside_sd, other=0.0)
        delta = tl.sum(gradient.to(tl.float32) * pooled.to(tl.float32), axis=1)
        begin = tl.maximum(tl.load(offsets + row).to(tl.int64), first)
        end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), last)
        for start in range(begin, end, BLOCK_N):
            inside_n = n < end - start
            inside = inside_n[:, None] & inside_d[None, :]
            keys, sin, cos = load_keys(k, angles, start, end, ROTATED, WIDTH, K_STRIDE, ANGLE_STRIDE, D, BLOCK_N)
            scores = tl.dot(queries, keys.T, input_precision="ieee")
            if start + BLOCK_N > end:
                scores = tl.where(inside_n[None, :], scores, float("-inf"))
            weights = tl.exp2(scores * scale_log2 - level[:, None])
            tile = start * D_STRIDE + head * WIDTH
            if NEEDS_V:
                change = tl.dot(gradient.T, weights.to(gradient.dtype), input_precision="ieee").T
                if ADDS:
                    change += tl.load(earlier_v + tile + places_dv, mask=inside, other=0.0)
                tl.store(dv + tile + places_dv, change.to(dv.dtype.element_ty), mask=inside)
            if NEEDS_SEEDS or NEEDS_K:
                values = tl.load(v + start * V_STRIDE + places_v, mask=inside, other=0.0)
                dweights = tl.dot(gradient, values.T, input_precision="ieee")
                dscores = (weights * (dweights - delta[:, None])).to(keys.dtype)
                if NEEDS_K:
                    change = tl.dot(queries.T, dscores, input_precision="ieee").T * scale
                    if ROTATED:
                        change = turned_back(change, sin, cos)
                    inside = inside_n[:, None] & inside_c[None, :]
                    if ADDS:
                        change += tl.load(earlier_k + tile + places_dk, mask=inside, other=0.0)
                    tl.store(dk + tile + places_dk, change.to(dk.dtype.element_ty), mask=inside)
                if NEEDS_SEEDS:
                    dqueries = tl.dot(dscores, keys, dqueries, input_precision="ieee")
    if NEEDS_SEEDS:
        places = ((walker * NUM_HEADS + head) * num_seeds + s[:, None]) * WIDTH + columns[None, :]
        tl.store(shares + places, dqueries * scale, mask=inside_sc)


def _backward_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """First what spills neither on sm_80 nor on later GPUs, where there is such; none spills on sm_90.

    At d = 128 in bf16 on sm_90, 32 seeds take 214 registers on 4 warps, so that one program computes while another
    waits for its keys; 64 and 128 seeds take 8 warps, 185 and 208 registers. With 128 seeds, 64 keys spill.
    """
    if key["bytes"] == 4:
        return [config(4, 1, BLOCK_N=16), config(4, 2, BLOCK_N=32)]
    values = seed_block(key) * int(key["d"])  # of the seeds' gradient, fp32, in registers
    if values <= 32 * 128:
        tiles = [(4, 3, 32), (4, 2, 64), (4, 2, 32), (8, 2, 64), (8, 3, 64), (8, 2, 128)]
    elif values <= 64 * 128:
        tiles = [(8, 3, 32), (4, 2, 32), (8, 2, 64), (8, 2, 32)]
    else:
        tiles = [(8, 2, 32), (8, 3, 32), (8, 2, 16)]
    return [config(warps, stages, BLOCK_N=n) for warps, stages, n in tiles]


BACKWARD = Kernel(seed_pooling_bwd_kernel, _backward_configs)


def backward(
    grad: Tensor, seeds: Tensor, k: Tensor, v: Tensor, angles: Tensor | None, offsets: Tensor, out: Tensor,
    softmax: Tensor, scale: float, needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient of ``seeds``, and those of ``k`` and ``v`` side by side, as far as they are needed."""
    dseeds, dkv = _bwd_outputs(grad, seeds, k, v, angles, offsets, out, softmax, scale, needs)
    num_keys, num_heads, width = k.shape
    if not num_keys:
        return dseeds.zero_(), dkv
    seeds, k, v = with_unit_stride(seeds), with_unit_stride(k), with_unit_stride(v)
    angles = None if angles is None else with_unit_stride(angles)
    grad, offsets, key = grad.contiguous(), offsets.contiguous(), shape_key(seeds, angles)
    num_walkers, stretch = pieces(num_keys, programs_wanted(k.device, num_heads))
    shares = softmax.new_empty(num_walkers, num_heads, len(seeds), width) if needs[0] else dseeds
    block, earlier = seed_block(key), dkv
    for first_seed in range(0, len(seeds), block):
        ends = first_seed + block >= len(seeds)
        target = dkv if ends else torch.empty_like(dkv, dtype=torch.float32)
        BACKWARD.launch(
            lambda _: (num_walkers * num_heads,), k.device,
            grad, seeds, k, v, angles, offsets, out, *softmax, *apart(earlier, needs[1:]), *apart(target, needs[1:]),
            shares, len(out), num_keys, len(seeds), first_seed, *seeds.stride()[:2], k.stride(1), v.stride(1),
            scale, scale * LOG2_E, stretch, key=key, **constants_of(seeds, k, v, angles), D_STRIDE=dkv.stride(0),
            BLOCK_S=block, NEEDS_SEEDS=needs[0], NEEDS_K=needs[1], NEEDS_V=needs[2], ADDS=first_seed > 0,
        )  # fmt: skip
        earlier = target
    if needs[0]:
        dseeds.copy_(shares.sum(0).transpose(0, 1))
    return dseeds, dkv
