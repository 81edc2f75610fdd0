"""Seed pooling's backward for Hopper with more than 64 seeds, in Gluon: two that make weights, one that sums them.

`kernel_bwd_sm90` has all seeds in one warpgroup's registers, which do not hold 128. Here two makers own 64 seeds each,
from the first row to the last: scores have seeds as rows, so that the seeds, the gradients of a row's pooled seeds, and
what is one number a seed stay in registers, read once a row. A maker's changes (gradients of scores) are, as they lie
there, the left operand of its seeds' gradient, which all rows share, and which it holds until the end.

Weights and changes of a tile of 64 keys are passed on in shared memory, all 128 seeds together, and a third warpgroup
sums them to dv and dk: both are complete when they are made. It turns dk back and has TMA write both; only a row's last
tile, where it is not full, is stored by the warps, with a mask. Two tiles may be on their way to it, so that makers
need not be in step. A warp has TMA bring keys, as forward turned them, and values in a ring of tiles, angles in
another, and each row's gradients a row ahead. Programs write a share of the seeds' gradient each, which are summed
after, in order, without atomics.

What TMA brings beyond the end of a row is the next row's, which may be anything: a second warp clears keys there, with
which changes are multiplied, and changes are masked. What else is made of it is in rows of dv and dk that nobody
writes. Seeds beyond the last one are zeros, and their level makes all weights zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from mfu_kernels.hopper import TILE, begin_load, blocks_of, of_product, places_of, tma_load
from mfu_kernels.launching import config
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rotary_time.device import sin_cos

from .kernel_bwd_sm90 import turned_back, write
from .kernel_sm90 import BRINGS, MOST_SEEDS, angles_of, row_of, walk

_TILE = gl.constexpr(TILE)
_SEEDS = gl.constexpr(MOST_SEEDS)
_EIGHT = gl.constexpr(8)  # rows that a warp clears at once


@gluon.jit
def _make(
    shared, offsets, levels, deltas, shares, num_rows, scale, scale_log2, NUM_HEADS: gl.constexpr, BLOCK: gl.constexpr
):  # fmt: skip
    """A maker: weights and changes of the BLOCK-th 64 seeds, and their gradient."""
    queries, grads, keys, values, _turns, weights, changes, _staged, barriers, _of_turns = shared
    seeded, given, used, came, clear, free, made, taken = barriers
    STAGES: gl.constexpr = keys.shape[0]
    DIM: gl.constexpr = keys.shape[2]
    scores_layout: gl.constexpr = of_product(_TILE)
    sums_layout: gl.constexpr = of_product(DIM)
    of_seeds: gl.constexpr = gl.SliceLayout(1, scores_layout)
    left_layout: gl.constexpr = gl.DotOperandLayout(0, scores_layout, 2)
    no_scores = gl.zeros([_TILE, _TILE], gl.float32, scores_layout)
    sums = gl.zeros([_TILE, DIM], gl.float32, sums_layout)
    row, step, head = walk(NUM_HEADS)
    mbarrier.wait(seeded, 0)
    seeds = queries.slice(BLOCK * _TILE, _TILE, dim=0).load(left_layout)
    n, r = 0, 0
    while row < num_rows:
        _, length = row_of(offsets, row)
        place = (row * NUM_HEADS + head).to(gl.int64) * _SEEDS + BLOCK * _TILE + gl.arange(0, _TILE, of_seeds)
        level, delta = gl.load(levels + place), gl.load(deltas + place)
        mbarrier.wait(given.index(r & 1), (r >> 1) & 1)
        grad = grads.index(r & 1).slice(BLOCK * _TILE, _TILE, dim=0).load(left_layout)
        mbarrier.arrive(used.index(r & 1), count=1)
        for at in range(0, length, _TILE):
            slot, phase, two = n % STAGES, (n // STAGES) & 1, n & 1
            left = length - at
            mbarrier.wait(came.index(slot), phase)
            if left < _TILE:
                mbarrier.wait(clear.index(slot), phase)
            scores = warpgroup_mma(
                seeds, keys.index(slot).permute([1, 0]), no_scores, use_acc=False, is_async=True
            )  # fmt: skip
            change = warpgroup_mma(
                grad, values.index(slot).permute([1, 0]), no_scores, use_acc=False, is_async=True
            )  # fmt: skip
            scores = warpgroup_mma_wait(1, [scores])
            weight = gl.exp2(scores * scale_log2 - level[:, None])
            change = warpgroup_mma_wait(0, [change])
            change = weight * (change - delta[:, None])
            if left < _TILE:
                inside = gl.arange(0, _TILE, gl.SliceLayout(0, scores_layout)) < left
                change = gl.where(inside[None, :], change, 0.0)
            change = change.to(keys.dtype)
            rounded = gl.convert_layout(change, gl.DotOperandLayout(0, sums_layout, 2))
            sums = warpgroup_mma(rounded, keys.index(slot), sums, is_async=True)
            mbarrier.wait(taken.index(two), ((n >> 1) & 1) ^ 1)
            weights.index(two).slice(BLOCK * _TILE, _TILE, dim=0).store(weight.to(keys.dtype))
            changes.index(two).slice(BLOCK * _TILE, _TILE, dim=0).store(change)
            fence_async_shared()
            mbarrier.arrive(made.index(two), count=1)
            sums = warpgroup_mma_wait(0, [sums])
            mbarrier.arrive(free.index(slot), count=1)
            n += 1
        r += 1
        row += step
    places, _ = places_of(DIM, _TILE, 0, DIM, sums_layout)
    gl.store(shares + (gl.program_id(0) * _SEEDS + BLOCK * _TILE) * DIM + places, sums * scale)


@gluon.jit
def _sum(
    shared, offsets, dk_tiles, dv_tiles, dk, dv, num_rows, scale,
    NUM_HEADS: gl.constexpr, DX_T: gl.constexpr, ROTATED: gl.constexpr,
):  # fmt: skip
    """The warpgroup that makes dv and dk of all tiles."""
    queries, grads, keys, _values, turns, weights, changes, staged, barriers, of_turns = shared
    seeded, given, used, _came, _clear, _free, made, taken = barriers
    turned, unturned = of_turns
    STAGES: gl.constexpr = keys.shape[0]
    DIM: gl.constexpr = keys.shape[2]
    nothing = gl.zeros([_TILE, DIM], gl.float32, of_product(DIM))
    row, step, head = walk(NUM_HEADS)
    mbarrier.wait(seeded, 0)
    n, r = 0, 0
    while row < num_rows:
        start, length = row_of(offsets, row)
        mbarrier.wait(given.index(r & 1), (r >> 1) & 1)
        for at in range(0, length, _TILE):
            slot, two = n % STAGES, n & 1
            left, token = length - at, start + at
            none = n >> 30  # so that addresses are made where they are used: held for the whole loop, they spill
            mbarrier.wait(made.index(two), (n >> 1) & 1)
            v_change = warpgroup_mma(
                weights.index(two).permute([1, 0]), grads.index(r & 1), nothing, use_acc=False, is_async=True
            )  # fmt: skip
            k_change = warpgroup_mma(
                changes.index(two).permute([1, 0]), queries, nothing, use_acc=False, is_async=True
            )  # fmt: skip
            if ROTATED:
                mbarrier.wait(turned.index(slot), (n // STAGES) & 1)
                sin, cos = sin_cos(angles_of(turns.index(slot), nothing), True)
                sin, cos = sin * scale, cos * scale
                mbarrier.arrive(unturned.index(slot), count=1)
            tma.store_wait(0)  # the gradients before are read
            v_change = warpgroup_mma_wait(1, [v_change])
            write(dv_tiles, dv, v_change, staged.index(none), token, head, left, none, DX_T, DIM)
            k_change = warpgroup_mma_wait(0, [k_change])
            mbarrier.arrive(taken.index(two), count=1)
            k_change = turned_back(k_change, sin, cos) if ROTATED else k_change * scale
            write(dk_tiles, dk, k_change, staged.index(1 + none), token, head, left, none, DX_T, DIM)
            n += 1
        mbarrier.arrive(used.index(r & 1), count=1)
        r += 1
        row += step
    tma.store_wait(0)


@gluon.jit
def _clear(shared, offsets, num_rows, NUM_HEADS: gl.constexpr):
    """The warp that clears keys beyond the end of a row."""
    _queries, _grads, keys, _values, _turns, _weights, _changes, _staged, barriers, _of_turns = shared
    _seeded, _given, _used, came, clear, free, _made, _taken = barriers
    STAGES: gl.constexpr = keys.shape[0]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    rows = gl.arange(0, _EIGHT, gl.SliceLayout(1, layout))
    row, step, _head = walk(NUM_HEADS)
    n = 0
    while row < num_rows:
        _, length = row_of(offsets, row)
        for at in range(0, length, _TILE):
            slot, left = n % STAGES, length - at
            mbarrier.wait(came.index(slot), (n // STAGES) & 1)
            if left < _TILE:
                for part in gl.static_range(0, _TILE, _EIGHT):
                    if left < part + _EIGHT:
                        tile = keys.index(slot).slice(part, _EIGHT, dim=0)
                        tile.store(gl.where((rows < left - part)[:, None], tile.load(layout), 0.0).to(tile.dtype))
                fence_async_shared()
            mbarrier.arrive(clear.index(slot), count=1)
            mbarrier.arrive(free.index(slot), count=1)  # or a tile might come and go while this warp is not looking
            n += 1
        row += step


@gluon.jit
def _bring(
    shared, seed_tiles, grad_tiles, k_tiles, v_tiles, angle_tiles, offsets, num_rows, NUM_HEADS: gl.constexpr,
    SEEDS_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr, ROTATED: gl.constexpr,
):  # fmt: skip
    """The warp that has TMA bring the seeds, each row's gradients, and tiles of keys, values and angles."""
    queries, grads, keys, values, turns, _weights, _changes, _staged, barriers, of_turns = shared
    seeded, given, used, came, _clear, free, _made, _taken = barriers
    turned, unturned = of_turns
    STAGES: gl.constexpr = keys.shape[0]
    DIM: gl.constexpr = keys.shape[2]
    row, step, head = walk(NUM_HEADS)
    begin_load(queries, seeded, seed_tiles, [0, head * SEEDS_H], True)
    n, r = 0, 0
    while row < num_rows:
        start, length = row_of(offsets, row)
        mbarrier.wait(used.index(r & 1), ((r >> 1) & 1) ^ 1)
        begin_load(grads.index(r & 1), given.index(r & 1), grad_tiles, [(row * NUM_HEADS + head) * _SEEDS, 0], True)
        for at in range(0, length, _TILE):
            slot, before = n % STAGES, ((n // STAGES) & 1) ^ 1
            mbarrier.wait(free.index(slot), before)
            begin_load(keys.index(slot), came.index(slot), k_tiles, [start + at, head * K_H], True)
            begin_load(values.index(slot), came.index(slot), v_tiles, [start + at, head * V_H], True)
            if ROTATED:  # half as many angles, of twice the bits
                mbarrier.wait(unturned.index(slot), before)
                mbarrier.expect(turned.index(slot), _TILE * DIM * 2)
                tma_load(angle_tiles, [start + at, 0], turned.index(slot), turns.index(slot))
            n += 1
        r += 1
        row += step


@gluon.jit
def seed_pooling_bwd_wide_sm90_kernel(
    seed_tiles, grad_tiles, k_tiles, v_tiles, dk_tiles, dv_tiles, angle_tiles, offsets, levels, deltas, dk, dv, shares,
    num_rows, scale, scale_log2,
    NUM_HEADS: gl.constexpr, DIM: gl.constexpr, SEEDS_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr,
    DX_T: gl.constexpr, ROTATED: gl.constexpr, STAGES: gl.constexpr, MAKERS: gl.constexpr,
):  # fmt: skip
    """Every so many rows of one head, with 128 seeds; MAKERS: registers of a maker's thread."""
    dtype: gl.constexpr = k_tiles.dtype
    tile: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM], dtype)
    of_seeds: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_SEEDS, DIM], dtype)
    passed: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_SEEDS, _TILE], dtype)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    queries = gl.allocate_shared_memory(dtype, [_SEEDS, DIM], of_seeds)
    grads = gl.allocate_shared_memory(dtype, [2, _SEEDS, DIM], of_seeds)
    keys = gl.allocate_shared_memory(dtype, [STAGES, _TILE, DIM], tile)
    values = gl.allocate_shared_memory(dtype, [STAGES, _TILE, DIM], tile)
    if ROTATED:
        of_angles: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM // 2], gl.float32)
        turns = gl.allocate_shared_memory(gl.float32, [STAGES, _TILE, DIM // 2], of_angles)
    else:
        turns = keys  # of no use
    weights = gl.allocate_shared_memory(dtype, [2, _SEEDS, _TILE], passed)
    changes = gl.allocate_shared_memory(dtype, [2, _SEEDS, _TILE], passed)
    staged = gl.allocate_shared_memory(dtype, [2, _TILE, DIM], tile)
    seeded = gl.allocate_shared_memory(gl.int64, [1], barrier)
    given = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    used = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    made = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    taken = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    came = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    clear = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    turned = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    unturned = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    mbarrier.init(seeded, count=1)
    for two in gl.static_range(2):
        mbarrier.init(given.index(two), count=1)
        mbarrier.init(used.index(two), count=3)
        mbarrier.init(made.index(two), count=2)
        mbarrier.init(taken.index(two), count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(came.index(slot), count=2)  # keys and values
        mbarrier.init(clear.index(slot), count=1)
        mbarrier.init(free.index(slot), count=3)  # of makers and of the warp that clears
        mbarrier.init(turned.index(slot), count=1)
        mbarrier.init(unturned.index(slot), count=1)
    fence_async_shared()
    barriers = (seeded, given, used, came, clear, free, made, taken)
    shared = (queries, grads, keys, values, turns, weights, changes, staged, barriers, (turned, unturned))
    gl.warp_specialize(
        [
            (_sum, (shared, offsets, dk_tiles, dv_tiles, dk, dv, num_rows, scale, NUM_HEADS, DX_T, ROTATED)),
            (_make, (shared, offsets, levels, deltas, shares, num_rows, scale, scale_log2, NUM_HEADS, 0)),
            (_make, (shared, offsets, levels, deltas, shares, num_rows, scale, scale_log2, NUM_HEADS, 1)),
            (_bring, (
                shared, seed_tiles, grad_tiles, k_tiles, v_tiles, angle_tiles, offsets, num_rows, NUM_HEADS, SEEDS_H,
                K_H, V_H, ROTATED,
            )),
            (_clear, (shared, offsets, num_rows, NUM_HEADS)),
        ],
        [4, 4, 1, 1], [MAKERS, MAKERS, BRINGS, BRINGS],
    )  # fmt: skip


def configs(key: MetaParameters) -> Sequence[triton.Config]:
    """One program on a multiprocessor: two makers take most registers, its rings what memory is left.

    Rotated, 230,008 bytes of shared memory, without angles 229,928. By Triton 3.6 nothing spills, by 3.9 some addresses
    that are read once a row. The one that sums has the 136 registers that are left, and is the first partition: as one
    of the others it spilled what its loop does not change.
    """
    if int(key["seeds"]) != MOST_SEEDS:
        return []
    return [config(STAGES=4 if "rotated" in key else 6, MAKERS=176)]


def arguments(
    divided: Tensor, seeds: Tensor, k: Tensor, v: Tensor, angles: Tensor | None, offsets: Tensor, levels: Tensor,
    deltas: Tensor, _earlier_k: Tensor, _earlier_v: Tensor, dk: Tensor, dv: Tensor, shares: Tensor,
    num_rows: int, _num_keys: int, _num_seeds: int, _num_padded: int, _first_seed: int, _seeds_s: int, seeds_h: int,
    k_h: int, v_h: int, scale: float, scale_log2: float, _stretch: int, **constants: Any,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:  # fmt: skip
    """What `seed_pooling_bwd_wide_sm90_kernel` takes, of what `seed_pooling_bwd_kernel` takes."""
    tiles = blocks_of(seeds, MOST_SEEDS), blocks_of(divided.view(-1, 1, divided.shape[-1]), MOST_SEEDS)
    angle_tiles = None if angles is None else blocks_of(angles[:, None], TILE)
    return (
        *tiles, *(blocks_of(x, TILE) for x in (k, v, dk, dv)), angle_tiles, offsets, levels, deltas, dk, dv, shares,
        num_rows, scale, scale_log2,
    ), {
        **{name: constants[name] for name in ("NUM_HEADS", "ROTATED", "STAGES", "MAKERS")},
        "SEEDS_H": seeds_h, "K_H": k_h, "V_H": v_h, "DIM": constants["D"], "DX_T": constants["D_STRIDE"],
        "maxnreg": 128,
    }  # fmt: skip
