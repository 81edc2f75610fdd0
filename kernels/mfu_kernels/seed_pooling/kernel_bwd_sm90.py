"""Seed pooling's backward for Hopper, in Gluon: two workers past each other, and one that gathers.

As in `kernel_sm90`, a program stays for many rows of one head, and a warp has TMA bring what is asked for: keys, as
forward turned them, and values in a ring of tiles of 64, and each row's gradient, two rows at a time. Two warpgroups
take tiles in turns. A tile's scores and their gradients are made with keys as rows, against all seeds at once: weights
and changes (gradients of scores) are the left operands of dv and dk as they lie in registers, and both are complete
when they are made, so that nothing of a tile stays behind. They are turned back and written by TMA; only a row's last
tile, where it is not full, is stored by the warps, with a mask.

The gradient of the seeds, which all rows share, stays in a third warpgroup's registers from the first row to the last:
workers leave a tile's changes in shared memory, rounded as the product takes them, and it multiplies them with the
tile's keys. Programs write a share of it each, which are summed after, in order, without atomics.

What TMA brings beyond the end of a row is the next row's, which may be anything: both tiles are cleared there, and the
weights masked. Seeds beyond the last one are zeros, and their level makes all weights zero.
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

from mfu_kernels.hopper import (
    TILE,
    begin_load,
    blocks_of,
    clear_from,
    halves_of,
    lies_for_tma,
    of_product,
    places_of,
    store_part,
    tma_store,
)
from mfu_kernels.launching import config
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rotary_time.device import sin_cos

from .kernel_sm90 import MOST_SEEDS, angles_lie, angles_of, begin_loads, row_of, walk

_TILE = gl.constexpr(TILE)
BRINGS = gl.constexpr(32)  # registers of the warp that asks TMA


@gluon.jit
def turned_back(change, sin, cos):
    """A gradient of keys as they were before a turn."""
    first, second = halves_of(change)
    pairs = gl.join(first * cos + second * sin, second * cos - first * sin)
    return gl.convert_layout(pairs.permute([0, 2, 1]).reshape(change.shape), of_product(change.shape[1]))


@gluon.jit
def write(tiles, out, change, staged, token, head, left, none, DX_T: gl.constexpr, COLUMN: gl.constexpr):
    """The first ``left`` rows of a gradient, from ``token`` on; by TMA, if these are all."""
    staged.store(change.to(staged.dtype))
    fence_async_shared()
    if left >= _TILE:
        tma_store(tiles, [token, head * COLUMN], staged)
    else:
        store_part(out + token.to(gl.int64) * DX_T + head * COLUMN, staged, DX_T + none * 16, left)


@gluon.jit
def _work(
    shared, offsets, levels, deltas, dk_tiles, dv_tiles, dk, dv, num_rows, scale, scale_log2,
    NUM_HEADS: gl.constexpr, DX_T: gl.constexpr, ROTATED: gl.constexpr, WORKER: gl.constexpr,
):  # fmt: skip
    """A worker: dk and dv of every second tile."""
    queries, grads, keys, values, turns, changes, staged, seeded, given, used, came, free, changed, taken = shared
    STAGES: gl.constexpr = keys.shape[0]
    DIM: gl.constexpr = keys.shape[2]
    BLOCKS: gl.constexpr = queries.shape[0]
    scores_layout: gl.constexpr = of_product(_TILE)
    sums_layout: gl.constexpr = of_product(DIM)
    left_layout: gl.constexpr = gl.DotOperandLayout(0, sums_layout, 2)
    no_scores = gl.zeros([_TILE, _TILE], gl.float32, scores_layout)
    nothing = gl.zeros([_TILE, DIM], gl.float32, sums_layout)
    row, step, head = walk(NUM_HEADS)
    mbarrier.wait(seeded, 0)
    n, r = 0, 0
    while row < num_rows:
        start, length = row_of(offsets, row)
        place = (row * NUM_HEADS + head).to(gl.int64) * (BLOCKS * _TILE)
        tiles = gl.cdiv(length, _TILE)
        for m in range(n + ((n + WORKER) & 1), n + tiles, 2):
            slot, at = m % STAGES, (m - n) * _TILE
            left, token = length - at, start + at
            none = m >> 30  # so that addresses are made where they are used: held for the whole loop, they spill
            mbarrier.wait(given.index(r & 1), (r >> 1) & 1)
            mbarrier.wait(came.index(slot), (m // STAGES) & 1)
            if left < _TILE:
                clear_from(keys.index(slot), left)
                clear_from(values.index(slot), left)
                fence_async_shared()
            mbarrier.wait(taken.index(WORKER), ((m >> 1) & 1) ^ 1)
            k_change, v_change = nothing, nothing
            for block in gl.static_range(BLOCKS):
                seeds, grad = queries.index(block + none), grads.index((r & 1) * BLOCKS + block)
                scores = warpgroup_mma(
                    keys.index(slot), seeds.permute([1, 0]), no_scores, use_acc=False, is_async=True
                )  # fmt: skip
                change = warpgroup_mma(
                    values.index(slot), grad.permute([1, 0]), no_scores, use_acc=False, is_async=True
                )  # fmt: skip
                # Read anew for each tile: held, they are a register each.
                columns = block * _TILE + gl.arange(0, _TILE, gl.SliceLayout(0, scores_layout))
                level = gl.load(levels + (place + none * 16) + columns)
                if block == 0:
                    scores = warpgroup_mma_wait(1, [scores])
                else:
                    scores, k_change, v_change = warpgroup_mma_wait(1, [scores, k_change, v_change])
                weights = gl.exp2(scores * scale_log2 - level[None, :])
                if left < _TILE:
                    inside = gl.arange(0, _TILE, gl.SliceLayout(1, scores_layout)) < left
                    weights = gl.where(inside[:, None], weights, 0.0)
                delta = gl.load(deltas + (place + none * 16) + columns)
                change = warpgroup_mma_wait(0, [change])
                change = (weights * (change - delta[None, :])).to(keys.dtype)
                rounded = gl.convert_layout(weights.to(keys.dtype), left_layout)
                v_change = warpgroup_mma(rounded, grad, v_change, use_acc=block > 0, is_async=True)
                rounded = gl.convert_layout(change, left_layout)
                k_change = warpgroup_mma(rounded, seeds, k_change, use_acc=block > 0, is_async=True)
                changes.index(WORKER * BLOCKS + block + none).store(change)
            fence_async_shared()
            mbarrier.arrive(changed.index(WORKER), count=1)
            if ROTATED:
                turn = angles_of(turns.index(slot), nothing)
            mbarrier.arrive(free.index(slot), count=1)
            tma.store_wait(0)  # the gradients before are read
            k_change, v_change = warpgroup_mma_wait(0, [k_change, v_change])
            write(dv_tiles, dv, v_change, staged.index(2 * WORKER + none), token, head, left, none, DX_T, DIM)
            k_change = k_change * scale
            if ROTATED:
                k_change = turned_back(k_change, *sin_cos(turn, True))
            write(dk_tiles, dk, k_change, staged.index(2 * WORKER + 1 + none), token, head, left, none, DX_T, DIM)
        if tiles > 0:
            mbarrier.arrive(used.index(r & 1), count=1)
        n += tiles
        r += gl.minimum(tiles, 1)
        row += step
    tma.store_wait(0)


@gluon.jit
def _gather(shared, offsets, shares, num_rows, scale, NUM_HEADS: gl.constexpr):
    """The warpgroup that sums the seeds' gradient, from all tiles of all rows."""
    queries, _grads, keys, _values, _turns, changes, _staged, _seeded, _given, _used, came, free, changed, taken = (
        shared
    )
    STAGES: gl.constexpr = keys.shape[0]
    DIM: gl.constexpr = keys.shape[2]
    BLOCKS: gl.constexpr = queries.shape[0]
    layout: gl.constexpr = of_product(DIM)
    nothing = gl.zeros([_TILE, DIM], gl.float32, layout)
    sums = (nothing,) * BLOCKS
    row, step, _head = walk(NUM_HEADS)
    program = gl.program_id(0)
    n = 0
    while row < num_rows:
        _, length = row_of(offsets, row)
        tiles = gl.cdiv(length, _TILE)
        for m in range(n, n + tiles):
            slot, worker = m % STAGES, m & 1
            mbarrier.wait(changed.index(worker), (m >> 1) & 1)
            mbarrier.wait(came.index(slot), (m // STAGES) & 1)
            for block in gl.static_range(BLOCKS):
                change = changes.index(worker * BLOCKS + block).permute([1, 0])
                total = warpgroup_mma(change, keys.index(slot), sums[block], is_async=True)
                sums = sums[:block] + (total,) + sums[block + 1 :]
            if BLOCKS == 1:
                sums = (warpgroup_mma_wait(0, [sums[0]]),)
            else:
                sums = warpgroup_mma_wait(0, [sums[0], sums[1]])
            mbarrier.arrive(taken.index(worker), count=1)
            mbarrier.arrive(free.index(slot), count=1)
        n += tiles
        row += step
    places, _ = places_of(DIM, _TILE, 0, DIM, layout)
    for block in gl.static_range(BLOCKS):
        gl.store(shares + (program * BLOCKS + block) * (_TILE * DIM) + places, sums[block] * scale)


@gluon.jit
def _bring(
    shared, seed_tiles, grad_tiles, k_tiles, v_tiles, angle_tiles, offsets, num_rows, NUM_HEADS: gl.constexpr,
    SEEDS_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr, ROTATED: gl.constexpr,
):  # fmt: skip
    """The warp that has TMA bring the seeds, each row's gradient, and tiles of keys and values into free slots."""
    queries, grads, keys, values, turns, _changes, _staged, seeded, given, used, came, free, _changed, _taken = shared
    STAGES: gl.constexpr = keys.shape[0]
    BLOCKS: gl.constexpr = queries.shape[0]
    row, step, head = walk(NUM_HEADS)
    for block in gl.static_range(BLOCKS):
        begin_load(queries.index(block), seeded, seed_tiles, [block * _TILE, head * SEEDS_H], True)
    n, r = 0, 0
    while row < num_rows:
        start, length = row_of(offsets, row)
        if length > 0:  # what nobody waits for would not be known to have come
            mbarrier.wait(used.index(r & 1), ((r >> 1) & 1) ^ 1)
        for block in gl.static_range(BLOCKS):
            place = [((row * NUM_HEADS + head) * BLOCKS + block) * _TILE, 0]
            begin_load(grads.index((r & 1) * BLOCKS + block), given.index(r & 1), grad_tiles, place, length > 0)
        for at in range(0, length, _TILE):
            slot = n % STAGES
            mbarrier.wait(free.index(slot), ((n // STAGES) & 1) ^ 1)
            begin_loads(
                slot, keys, values, turns, came, came, k_tiles, v_tiles, angle_tiles,
                start + at, head * K_H, head * V_H, ROTATED,
            )  # fmt: skip
            n += 1
        r += gl.minimum(length, 1)
        row += step


@gluon.jit
def seed_pooling_bwd_sm90_kernel(
    seed_tiles, grad_tiles, k_tiles, v_tiles, dk_tiles, dv_tiles, angle_tiles, offsets, levels, deltas, dk, dv, shares,
    num_rows, scale, scale_log2,
    NUM_HEADS: gl.constexpr, DIM: gl.constexpr, SEEDS_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr,
    DX_T: gl.constexpr, ROTATED: gl.constexpr, BLOCKS: gl.constexpr,
    STAGES: gl.constexpr, REGISTERS: gl.constexpr, REST: gl.constexpr,
):  # fmt: skip
    """Every so many rows of one head, with BLOCKS blocks of 64 seeds."""
    dtype: gl.constexpr = k_tiles.dtype
    tile: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM], dtype)
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, _TILE], dtype)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    queries = gl.allocate_shared_memory(dtype, [BLOCKS, _TILE, DIM], tile)
    grads = gl.allocate_shared_memory(dtype, [2 * BLOCKS, _TILE, DIM], tile)
    keys = gl.allocate_shared_memory(dtype, [STAGES, _TILE, DIM], tile)
    values = gl.allocate_shared_memory(dtype, [STAGES, _TILE, DIM], tile)
    if ROTATED:
        of_angles: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM // 2], gl.float32)
        turns = gl.allocate_shared_memory(gl.float32, [STAGES, _TILE, DIM // 2], of_angles)
    else:
        turns = keys  # of no use
    changes = gl.allocate_shared_memory(dtype, [2 * BLOCKS, _TILE, _TILE], square)
    staged = gl.allocate_shared_memory(dtype, [4, _TILE, DIM], tile)
    seeded = gl.allocate_shared_memory(gl.int64, [1], barrier)
    given = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    used = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    came = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    changed = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    taken = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    mbarrier.init(seeded, count=BLOCKS)
    for two in gl.static_range(2):
        mbarrier.init(given.index(two), count=BLOCKS)
        mbarrier.init(used.index(two), count=2)
        mbarrier.init(changed.index(two), count=1)
        mbarrier.init(taken.index(two), count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(came.index(slot), count=2)  # keys and values
        mbarrier.init(free.index(slot), count=2)  # of a worker and of the one that gathers
    fence_async_shared()
    shared = (queries, grads, keys, values, turns, changes, staged, seeded, given, used, came, free, changed, taken)
    gl.warp_specialize(
        [
            (_work, (
                shared, offsets, levels, deltas, dk_tiles, dv_tiles, dk, dv, num_rows, scale, scale_log2,
                NUM_HEADS, DX_T, ROTATED, 0,
            )),
            (_work, (
                shared, offsets, levels, deltas, dk_tiles, dv_tiles, dk, dv, num_rows, scale, scale_log2,
                NUM_HEADS, DX_T, ROTATED, 1,
            )),
            (_gather, (shared, offsets, shares, num_rows, scale, NUM_HEADS)),
            (_bring, (
                shared, seed_tiles, grad_tiles, k_tiles, v_tiles, angle_tiles, offsets, num_rows, NUM_HEADS, SEEDS_H,
                K_H, V_H, ROTATED,
            )),
        ],
        [4, 4, 1], [REGISTERS, REST, BRINGS],
    )  # fmt: skip


def fits(seeds: Tensor, k: Tensor, v: Tensor, angles: Tensor | None, dkv: Tensor, needs: Sequence[bool]) -> bool:
    """Whether this kernel takes these tensors, of unit last stride, as they lie, and makes what is needed of them."""
    return (
        all(needs)
        and v.element_size() == 2
        and TILE // 2 < len(seeds) <= MOST_SEEDS
        and k.shape[2] == v.shape[2] == TILE
        and len(k) < 2**31
        and all(lies_for_tma(x) for x in (seeds, k, v, dkv))
        and angles_lie(angles, v.shape[2])
    )


def configs(key: MetaParameters) -> Sequence[triton.Config]:
    """One program on a multiprocessor: its two workers take most registers, its ring what memory is left.

    With 128 seeds, 213,512 bytes of shared memory; the one that gathers needs 96 registers beside the workers' 192,
    which spill some addresses (about 30 loads of a tile's 1,200 instructions). If any warpgroup's sums spilled, the
    compiler would have all products wait for each other. With 64 seeds nothing spills.
    """
    tiles = [(4, 192)] if int(key["seeds"]) > TILE else [(4, 200), (6, 200)]
    return [config(PROGRAMS=1, STAGES=stages, REGISTERS=registers) for stages, registers in tiles]


def arguments(
    divided: Tensor, seeds: Tensor, k: Tensor, v: Tensor, angles: Tensor | None, offsets: Tensor, levels: Tensor,
    deltas: Tensor, _earlier_k: Tensor, _earlier_v: Tensor, dk: Tensor, dv: Tensor, shares: Tensor,
    num_rows: int, _num_keys: int, _num_seeds: int, num_padded: int, _first_seed: int, _seeds_s: int, seeds_h: int,
    k_h: int, v_h: int, scale: float, scale_log2: float, _stretch: int, **constants: Any,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:  # fmt: skip
    """What `seed_pooling_bwd_sm90_kernel` takes, of what `seed_pooling_bwd_kernel` takes."""
    tiles = blocks_of(seeds, TILE), blocks_of(divided.view(-1, 1, divided.shape[-1]), TILE)
    angle_tiles = None if angles is None else blocks_of(angles[:, None], TILE)
    wanted = ("NUM_HEADS", "ROTATED", "STAGES", "REGISTERS")
    return (
        *tiles, *(blocks_of(x, TILE) for x in (k, v, dk, dv)), angle_tiles, offsets, levels, deltas, dk, dv, shares,
        num_rows, scale, scale_log2,
    ), {
        **{name: constants[name] for name in wanted},
        "SEEDS_H": seeds_h, "K_H": k_h, "V_H": v_h, "DIM": constants["D"], "BLOCKS": num_padded // TILE,
        "DX_T": constants["D_STRIDE"], "REST": 512 - 2 * constants["REGISTERS"] - BRINGS.value, "maxnreg": 128,
    }  # fmt: skip
