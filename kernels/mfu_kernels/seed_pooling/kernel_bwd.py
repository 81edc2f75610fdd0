"""Seed pooling in Triton, backward: the packed keys are shared out evenly, whatever the rows' lengths.

A program takes one head and one stretch of keys, which may begin and end inside a row, and walks the rows in it. Each
key tile is read once; scores have keys as rows, so that weights and their gradients are, as the tensor core left them,
the left operands of dV and dK, which are complete when they are written; what is one number a seed is read anew for
each tile, for columns would hold it in a register each. The gradient of the seeds, which all rows share, stays in
registers from row to row, transposed: a program writes one fp32 share of it, and the shares are summed after, in order,
without atomics. Seeds beyond one block are further launches, which add to what the earlier ones left in fp32.
On Hopper, `kernel_bwd_sm90` has a form of its own for many seeds in 16 bits, `kernel_bwd_wide_sm90` one for more than
64.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.boundary import apart
from mfu_kernels.launching import Kernel, capability, cdiv, config, current, for_hopper
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rotary_time.device import columns_of, turned_back
from mfu_kernels.rows import with_unit_stride

from . import kernel_bwd_sm90, kernel_bwd_wide_sm90
from .boundary import _bwd_outputs
from .kernel import LOG2_E, constants_of, few_rows_configs, pieces, program_of, programs_wanted, seed_block, shape_key
from .kernel_sm90 import programs_of_head


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
def seed_pooling_divide_kernel(
    grad, out, highest, total, divided, levels, deltas, num_seeds, num_padded, scale_log2,
    NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """``divided`` [B, H, padded S, d] = grad over its softmax's denominator; ``deltas`` [B, H, padded S] = sum(it out).

    So backward divides once a row, in place of each of its weights. ``levels``, shaped as ``deltas``, are the highest
    scores in base 2; those of padded seeds make all their weights 0.
    """
    s, head, row = program_of(num_padded, NUM_HEADS, BLOCK_S)
    dims, inside_s = tl.arange(0, D), s < num_seeds
    inside = inside_s[:, None] & (dims < WIDTH)[None, :]
    places = ((row * num_seeds + s[:, None]) * NUM_HEADS + head) * WIDTH + dims[None, :]
    place = (row * NUM_HEADS + head) * num_seeds + s
    denominator = tl.load(total + place, mask=inside_s, other=1.0)
    share = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
    share /= tl.where(denominator > 0.0, denominator, 1.0)[:, None]  # of an empty row it is 0
    share = share.to(divided.dtype.element_ty)
    pooled = tl.load(out + places, mask=inside, other=0.0).to(tl.float32)
    level = tl.load(highest + place, mask=inside_s, other=float("inf")) * scale_log2
    place, inside_s = (row * NUM_HEADS + head) * num_padded + s, s < num_padded
    tl.store(levels + place, level, mask=inside_s)
    tl.store(deltas + place, tl.sum(share.to(tl.float32) * pooled, axis=1), mask=inside_s)
    inside = inside_s[:, None] & (dims < WIDTH)[None, :]
    tl.store(divided + place[:, None] * WIDTH + dims[None, :], share, mask=inside)


@triton.jit
def seed_pooling_bwd_kernel(
    divided, seeds, k, v, angles, offsets, levels, deltas, earlier_k, earlier_v, dk, dv, shares,
    num_rows, num_keys, num_seeds, num_padded, first_seed, seeds_s, seeds_h, k_h, v_h, scale, scale_log2, stretch,
    NEEDS_SEEDS: tl.constexpr, NEEDS_K: tl.constexpr, NEEDS_V: tl.constexpr, ADDS: tl.constexpr,
    ROTATED: tl.constexpr, NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, ANGLE_STRIDE: tl.constexpr, D_STRIDE: tl.constexpr,
    D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dV = Pᵀ g; dP = g vᵀ; dS = P (dP - delta); dK = scale dSᵀ q; share of dQ = scale dS k. Keys are turned ones."""
    head = (tl.program_id(0) % NUM_HEADS).to(tl.int64)
    walker = (tl.program_id(0) // NUM_HEADS).to(tl.int64)
    s = first_seed + tl.arange(0, BLOCK_S)
    rows_s = tl.arange(0, BLOCK_S)[:, None].to(tl.int64)
    n, dims = tl.arange(0, BLOCK_N), tl.arange(0, D)
    rows = n[:, None].to(tl.int64)
    inside_s, inside_d = s < num_seeds, dims < WIDTH
    columns, inside_c = columns_of(WIDTH, D, ROTATED)
    queries = tl.load(
        seeds + head * seeds_h + (s[:, None].to(tl.int64) * seeds_s + columns[None, :]),
        mask=inside_s[:, None] & inside_c[None, :], other=0.0,
    )  # fmt: skip
    dqueries = tl.zeros([D, BLOCK_S], dtype=tl.float32)
    k += head * k_h
    v += head * v_h
    if NEEDS_K and NEEDS_V:  # they lie side by side
        dv = dk + NUM_HEADS * WIDTH
    first, last = walker * stretch, tl.minimum((walker + 1) * stretch, num_keys)

    for row in range(_row_of(offsets, first, num_rows), _row_of(offsets, last - 1, num_rows) + 1):
        place = (row * NUM_HEADS + head) * num_padded + first_seed
        gradient = tl.load(
            divided + place * WIDTH + (rows_s * WIDTH + dims[None, :]), mask=inside_d[None, :], other=0.0
        )  # fmt: skip
        place += tl.arange(0, BLOCK_S)
        begin = tl.maximum(tl.load(offsets + row).to(tl.int64), first)
        end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), last)
        for start in range(begin, end, BLOCK_N):
            inside_n = n < end - start
            inside = inside_n[:, None] & inside_d[None, :]
            inside_k = inside_n[:, None] & inside_c[None, :]
            keys = tl.load(
                k + start * K_STRIDE + (rows * K_STRIDE + columns[None, :]), mask=inside_k, other=0.0
            )  # fmt: skip
            scores = tl.dot(keys, queries.T, input_precision="ieee")
            weights = tl.exp2(scores * scale_log2 - tl.load(levels + place)[None, :])
            weights = tl.where(inside_n[:, None], weights, 0.0)
            tile = start * D_STRIDE + head * WIDTH
            places = rows * D_STRIDE + dims[None, :]
            if NEEDS_SEEDS or NEEDS_K:
                values = tl.load(
                    v + start * V_STRIDE + (rows * V_STRIDE + dims[None, :]), mask=inside, other=0.0
                )  # fmt: skip
                dweights = tl.dot(values, gradient.T, input_precision="ieee")
                dscores = (weights * (dweights - tl.load(deltas + place)[None, :])).to(keys.dtype)
            if NEEDS_V:
                change = tl.dot(weights.to(gradient.dtype), gradient, input_precision="ieee")
                if ADDS:
                    change += tl.load(earlier_v + tile + places, mask=inside, other=0.0)
                tl.store(dv + tile + places, change.to(dv.dtype.element_ty), mask=inside)
            if NEEDS_SEEDS or NEEDS_K:
                if NEEDS_SEEDS:  # so, for a transposed left operand that is no tile in memory is miscompiled on Hopper
                    dqueries = tl.dot(keys.T, dscores, dqueries, input_precision="ieee")
                if NEEDS_K:
                    change = tl.dot(dscores, queries, input_precision="ieee") * scale
                    if ROTATED:
                        half = tl.arange(0, D // 2)
                        turn = tl.load(
                            angles + start * ANGLE_STRIDE + (rows * ANGLE_STRIDE + half[None, :]),
                            mask=inside_n[:, None] & (half < WIDTH // 2)[None, :], other=0.0,
                        )  # fmt: skip
                        change = turned_back(change, turn.to(tl.float32), k.dtype.element_ty.primitive_bitwidth < 32)
                    places = rows * D_STRIDE + columns[None, :]
                    if ADDS:
                        change += tl.load(earlier_k + tile + places, mask=inside_k, other=0.0)
                    tl.store(dk + tile + places, change.to(dk.dtype.element_ty), mask=inside_k)
    if NEEDS_SEEDS:
        shares += ((walker * NUM_HEADS + head) * num_padded + first_seed) * WIDTH
        tl.store(shares + (rows_s * WIDTH + columns[None, :]), dqueries.T * scale, mask=inside_c[None, :])


def _plain_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """First the fastest that spills nothing, by how many numbers of the seeds' gradient are in registers.

    On sm_90 64 keys on 4 warps are the rows of one instruction of a warpgroup; 8 warps would all hold all rows. With 64
    numbers a thread that takes 255 registers, and more, though only scalars of the outer loop, at d = 128 or where keys
    are rotated. Heads wider than 128 spill with 64 keys at any number of seeds.
    """
    if key["bytes"] == 4:
        return [config(4, 1, BLOCK_N=16), config(4, 2, BLOCK_N=32)]
    values = seed_block(key) * int(key["d"])  # of the seeds' gradient, fp32, in registers
    if values > 64 * 128 or int(key["d"]) > 128:
        best = (8, 2, 16) if capability() < 90 else (8, 2, 32)
    elif capability() // 10 != 9:
        best = (8, 2, 32)
    elif values == 64 * 128 and "rotated" in key:
        best = (4, 3, 32)
    elif values == 64 * 128 and int(key["d"]) > 64:
        best = (8, 3, 64)
    else:
        best = (4, 3, 64) if int(key["d"]) <= 64 else (4, 2, 64)
    tiles = [(4, 3, 64), (4, 2, 64), (4, 3, 32), (8, 3, 64), (8, 2, 32), (8, 2, 16), (8, 2, 128)]
    return [config(warps, stages, BLOCK_N=n) for warps, stages, n in sorted(tiles, key=lambda tile: tile != best)]


def _backward_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """The warpgroups' form for Hopper is first where it won: on an H200, 64 seeds took 0.50 in place of 0.65 ms with
    heads of 64, rotated; 128, which spill, did not. That of makers, for more than 64, was not timed."""
    plain, own = _plain_configs(key), [*kernel_bwd_sm90.configs(key), *kernel_bwd_wide_sm90.configs(key)]
    if not key.get("warpgroups"):
        return plain
    return [*own, *plain] if int(key["seeds"]) <= 64 else [*plain, *own]


DIVIDE = Kernel(seed_pooling_divide_kernel, few_rows_configs)
BACKWARD = Kernel(
    seed_pooling_bwd_kernel,
    _backward_configs,
    forms={
        "PROGRAMS": (kernel_bwd_sm90.seed_pooling_bwd_sm90_kernel, kernel_bwd_sm90.arguments),
        "MAKERS": (kernel_bwd_wide_sm90.seed_pooling_bwd_wide_sm90_kernel, kernel_bwd_wide_sm90.arguments),
    },
)


def backward(
    grad: Tensor, seeds: Tensor, k: Tensor, v: Tensor, angles: Tensor | None, offsets: Tensor, out: Tensor,
    softmax: Tensor, scale: float, needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient of ``seeds``, and those of ``k`` and ``v`` side by side, as far as they are needed.

    ``k`` are the keys as forward turned them by ``angles``; the gradient is that of the keys before.
    """
    dseeds, dkv = _bwd_outputs(grad, seeds, k, v, angles, offsets, out, softmax, scale, needs)
    num_keys, num_heads, width = k.shape
    if not num_keys:
        return dseeds.zero_(), dkv
    seeds, k, v = with_unit_stride(seeds), with_unit_stride(k), with_unit_stride(v)
    angles = None if angles is None else with_unit_stride(angles)
    grad, offsets, key = grad.contiguous(), offsets.contiguous(), shape_key(seeds, v, angles)
    block, earlier = seed_block(key), dkv
    num_padded = cdiv(len(seeds), block) * block
    divided = grad.new_empty(len(out), num_heads, num_padded, width)
    statistics = softmax.new_empty(2, *divided.shape[:3])
    DIVIDE.launch(
        lambda c: (len(out) * num_heads * cdiv(num_padded, c["BLOCK_S"]),), k.device,
        grad, out, *softmax, divided, *statistics, len(seeds), num_padded, scale * LOG2_E,
        key=key, NUM_HEADS=num_heads, WIDTH=width, D=key["d"],
    )  # fmt: skip
    num_walkers, stretch = pieces(num_keys, programs_wanted(k.device, num_heads))
    if for_hopper(k.device) and kernel_bwd_sm90.fits(seeds, k, v, angles, dkv, needs):
        key = {**key, "warpgroups": True}
        with current(k.device):
            chosen = BACKWARD.choose(key, k.device)
        if BACKWARD.form_of(chosen):
            num_walkers = programs_of_head(chosen.kwargs, len(out), num_heads, k.device)
    shares = softmax.new_empty(num_walkers, num_heads, num_padded, width) if needs[0] else dseeds
    for first_seed in range(0, len(seeds), block):
        ends = first_seed + block >= len(seeds)
        target = dkv if ends else torch.empty_like(dkv, dtype=torch.float32)
        BACKWARD.launch(
            lambda _: (num_walkers * num_heads,), k.device,
            divided, seeds, k, v, angles, offsets, *statistics,
            *apart(earlier, needs[1:]), *apart(target, needs[1:]), shares,
            len(out), num_keys, len(seeds), num_padded, first_seed, *seeds.stride()[:2], k.stride(1), v.stride(1),
            scale, scale * LOG2_E, stretch, key=key, **constants_of(k, v, angles, key), D_STRIDE=dkv.stride(0),
            BLOCK_S=block, NEEDS_SEEDS=needs[0], NEEDS_K=needs[1], NEEDS_V=needs[2], ADDS=first_seed > 0,
        )  # fmt: skip
        earlier = target
    if needs[0]:
        dseeds.copy_(shares.sum(0)[:, : len(seeds)].transpose(0, 1))
    return dseeds, dkv
