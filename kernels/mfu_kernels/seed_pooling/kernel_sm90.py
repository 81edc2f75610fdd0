"""Seed pooling's forward for Hopper, in Gluon: products, exponentials and rotation beside each other.

In Triton all warps of a program do the same at the same time: tensor cores wait while weights are made, and both wait
while keys are rotated. Here a program is made of warpgroups, which pass tiles of keys and values on through a ring in
shared memory. A warp has TMA bring them; a warpgroup turns the keys where they lie, and writes them down for backward;
each consumer has 64 seeds, scores all keys for them, and makes their softmaxes and sums in its registers. With more
than 64 seeds two consumers are at work, which fall out of step by themselves: one multiplies while the other is at its
exponentials. With fewer, two programs on a multiprocessor do.

A program stays for many rows, all of one head: its seeds are brought once, and the next row's keys are on their way, or
turned, when a row ends.

What TMA brings beyond the end of a row is the next row's, which may be anything: scores there are masked, and values
cleared, for a weight of zero does not stop a NaN. Seeds beyond the last one are zeros; TMA does not write their sums.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
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
    tma_load,
    tma_store,
    whole_of,
)
from mfu_kernels.launching import config
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rotary_time.device import sin_cos
from mfu_kernels.rows import num_walkers

_TILE = gl.constexpr(TILE)
BRINGS = gl.constexpr(24)  # registers of a warp that only asks TMA
MOST_SEEDS = 2 * TILE


@gluon.jit
def walk(NUM_HEADS: gl.constexpr):
    """This program's first row, from how many rows on its next one is, and its head."""
    return gl.program_id(0) // NUM_HEADS, gl.num_programs(0) // NUM_HEADS, gl.program_id(0) % NUM_HEADS


@gluon.jit
def row_of(offsets, row):
    """Where a row begins, and how long it is: int32, as TMA counts."""
    start = gl.load(offsets + row).to(gl.int32)
    return start, gl.load(offsets + row + 1).to(gl.int32) - start


@gluon.constexpr_function
def in_pairs(width):
    """The layout of a tile [64, width] whose threads have both columns that a rotation pairs, 16 bytes of each."""
    return gl.BlockedLayout([1, 8], [512 // width, width // 16], [4, 1], [1, 0])


@gluon.jit
def angles_of(turns, like):
    """Angles in shared memory, each for a pair of the columns of ``like``."""
    half, _ = halves_of(like)
    layout: gl.constexpr = half.type.layout
    return turns.load(layout)


@gluon.jit
def begin_loads(
    slot, keys, values, turns, k_came, v_came, k_tiles, v_tiles, angle_tiles, token, k_column, v_column,
    ROTATED: gl.constexpr,
):  # fmt: skip
    """Have TMA bring a tile of keys, with their angles, and one of values."""
    KEYS: gl.constexpr = keys.shape[1]
    DIM: gl.constexpr = keys.shape[2]
    if ROTATED:  # half as many angles, of twice the bits
        mbarrier.expect(k_came.index(slot), 2 * KEYS * DIM * 2)
        tma_load(angle_tiles, [token, 0], k_came.index(slot), turns.index(slot))
        tma_load(k_tiles, [token, k_column], k_came.index(slot), keys.index(slot))
    else:
        begin_load(keys.index(slot), k_came.index(slot), k_tiles, [token, k_column], True)
    begin_load(values.index(slot), v_came.index(slot), v_tiles, [token, v_column], True)


@gluon.jit
def _turn(tile, turn, turned, count, SAVES: gl.constexpr, ROW: gl.constexpr):
    """Turn 64 keys in shared memory by ``turn``; if SAVES, write the first ``count`` of them to ``turned``."""
    layout: gl.constexpr = in_pairs(tile.shape[1])
    first, second = halves_of(tile.load(layout))
    first, second = first.to(gl.float32), second.to(gl.float32)
    sin, cos = sin_cos(turn, True)
    low, high = (first * cos - second * sin).to(tile.dtype), (first * sin + second * cos).to(tile.dtype)
    tile.store(gl.convert_layout(whole_of(low, high), layout))
    if SAVES:
        of_half: gl.constexpr = low.type.layout
        places, kept = places_of(ROW, count, 0, low.shape[1], of_half)
        gl.store(turned + places, low, mask=kept)
        gl.store(turned + low.shape[1] + places, high, mask=kept)


@gluon.jit
def _prepare(shared, turned, offsets, num_rows, NUM_HEADS: gl.constexpr, ROTATED: gl.constexpr, SAVES: gl.constexpr):
    """The warpgroup that makes tiles ready: keys turned, values clear beyond the row."""
    _queries, keys, values, turns, _staged, _seeded, k_came, v_came, ready, _free = shared
    STAGES: gl.constexpr = keys.shape[0]
    KEYS: gl.constexpr = keys.shape[1]
    DIM: gl.constexpr = keys.shape[2]
    ROW: gl.constexpr = NUM_HEADS * DIM
    row, step, head = walk(NUM_HEADS)
    like = gl.zeros([_TILE, DIM], keys.dtype, in_pairs(DIM))
    n = 0
    while row < num_rows:
        start, length = row_of(offsets, row)
        for at in range(0, length, KEYS):
            slot, phase = n % STAGES, (n // STAGES) & 1
            mbarrier.wait(k_came.index(slot), phase)
            if ROTATED:
                for part in gl.static_range(KEYS // _TILE):
                    place = at + part * _TILE
                    left = length - place
                    turn = angles_of(turns.index(slot).slice(part * _TILE, _TILE, dim=0), like)
                    to = turned + (start + place).to(gl.int64) * ROW + head * DIM if SAVES else turned
                    _turn(keys.index(slot).slice(part * _TILE, _TILE, dim=0), turn, to, left, SAVES, ROW)
            if length - at < KEYS:
                mbarrier.wait(v_came.index(slot), phase)
                clear_from(values.index(slot), length - at)
            fence_async_shared()
            mbarrier.arrive(ready.index(slot), count=1)
            n += 1
        row += step


@gluon.jit
def _bring(
    shared, seed_tiles, k_tiles, v_tiles, angle_tiles, offsets, num_rows, NUM_HEADS: gl.constexpr,
    SEEDS_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr, ROTATED: gl.constexpr,
):  # fmt: skip
    """The warp that has TMA bring the seeds, and tiles of keys and values into free slots."""
    queries, keys, values, turns, _staged, seeded, k_came, v_came, _ready, free = shared
    STAGES: gl.constexpr = keys.shape[0]
    KEYS: gl.constexpr = keys.shape[1]
    BLOCKS: gl.constexpr = queries.shape[0]
    row, step, head = walk(NUM_HEADS)
    for block in gl.static_range(BLOCKS):
        begin_load(queries.index(block), seeded, seed_tiles, [block * _TILE, head * SEEDS_H], True)
    n = 0
    while row < num_rows:
        start, length = row_of(offsets, row)
        for at in range(0, length, KEYS):
            slot = n % STAGES
            mbarrier.wait(free.index(slot), ((n // STAGES) & 1) ^ 1)
            begin_loads(
                slot, keys, values, turns, k_came, v_came, k_tiles, v_tiles, angle_tiles,
                start + at, head * K_H, head * V_H, ROTATED,
            )  # fmt: skip
            n += 1
        row += step


@gluon.jit
def _pool(
    shared, offsets, out_tiles, highest, total, num_rows, num_seeds, scale_log2,
    NUM_HEADS: gl.constexpr, BLOCK: gl.constexpr,
):  # fmt: skip
    """A consumer: softmaxes and sums of the BLOCK-th 64 seeds."""
    queries, keys, values, _turns, staged, seeded, k_came, v_came, ready, free = shared
    STAGES: gl.constexpr = keys.shape[0]
    KEYS: gl.constexpr = keys.shape[1]
    DIM: gl.constexpr = keys.shape[2]
    scores_layout: gl.constexpr = of_product(KEYS)
    sums_layout: gl.constexpr = of_product(DIM)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, sums_layout, 2)
    of_rows: gl.constexpr = gl.SliceLayout(1, scores_layout)
    no_scores = gl.zeros([_TILE, KEYS], gl.float32, scores_layout)
    seeds = BLOCK * _TILE + gl.arange(0, _TILE, of_rows)
    row, step, head = walk(NUM_HEADS)
    mbarrier.wait(seeded, 0)
    n = 0
    while row < num_rows:
        _, length = row_of(offsets, row)
        high = gl.full([_TILE], float("-inf"), gl.float32, of_rows)
        denominator = gl.zeros([_TILE], gl.float32, of_rows)
        pooled = gl.zeros([_TILE, DIM], gl.float32, sums_layout)
        for at in range(0, length, KEYS):
            slot, phase = n % STAGES, (n // STAGES) & 1
            mbarrier.wait(ready.index(slot), phase)
            mbarrier.wait(k_came.index(slot), phase)  # what is ready has come, but not by whom this one knows
            k_columns = keys.index(slot).permute([1, 0])
            scores = warpgroup_mma(queries.index(BLOCK), k_columns, no_scores, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(0, [scores])
            if length - at < KEYS:
                columns = gl.arange(0, KEYS, gl.SliceLayout(0, scores_layout))
                scores = gl.where((columns < length - at)[None, :], scores, float("-inf"))
            higher = gl.maximum(high, gl.max(scores, 1))
            weights = gl.exp2(scores * scale_log2 - (higher * scale_log2)[:, None])
            fade = gl.exp2((high - higher) * scale_log2)
            denominator = denominator * fade + gl.sum(weights, 1)
            pooled = pooled * gl.convert_layout(fade, gl.SliceLayout(1, sums_layout))[:, None]
            rounded = gl.convert_layout(weights.to(keys.dtype), weights_layout)
            mbarrier.wait(v_came.index(slot), phase)
            pooled = warpgroup_mma(rounded, values.index(slot), pooled, is_async=True)
            high = higher
            pooled = warpgroup_mma_wait(0, [pooled])
            mbarrier.arrive(free.index(slot), count=1)
            n += 1
        place = (row * NUM_HEADS + head).to(gl.int64) * num_seeds + seeds
        gl.store(highest + place, high, mask=seeds < num_seeds)
        gl.store(total + place, denominator, mask=seeds < num_seeds)
        share = 1.0 / gl.where(denominator > 0.0, denominator, 1.0)
        pooled = pooled * gl.convert_layout(share, gl.SliceLayout(1, sums_layout))[:, None]
        tma.store_wait(0)  # the row before is read
        staged.index(BLOCK).reshape([_TILE, DIM]).store(pooled.to(keys.dtype))
        fence_async_shared()
        tma_store(out_tiles, [row, BLOCK * _TILE, head * DIM], staged.index(BLOCK))
        row += step
    tma.store_wait(0)


@gluon.jit
def seed_pooling_fwd_sm90_kernel(
    seed_tiles, k_tiles, v_tiles, angle_tiles, offsets, out_tiles, highest, total, turned,
    num_rows, num_seeds, scale_log2,
    NUM_HEADS: gl.constexpr, DIM: gl.constexpr, SEEDS_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr,
    ROTATED: gl.constexpr, SAVES: gl.constexpr,
    BLOCKS: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr, REST: gl.constexpr,
):  # fmt: skip
    """Every so many rows of one head, BLOCKS blocks of 64 seeds, KEYS keys at a time."""
    dtype: gl.constexpr = k_tiles.dtype
    tile: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM], dtype)
    of_keys: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, DIM], dtype)
    of_out: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, _TILE, DIM], dtype)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    queries = gl.allocate_shared_memory(dtype, [BLOCKS, _TILE, DIM], tile)
    keys = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], of_keys)
    values = gl.allocate_shared_memory(dtype, [STAGES, KEYS, DIM], of_keys)
    if ROTATED:
        of_angles: gl.constexpr = gl.NVMMASharedLayout.get_default_for([KEYS, DIM // 2], gl.float32)
        turns = gl.allocate_shared_memory(gl.float32, [STAGES, KEYS, DIM // 2], of_angles)
    else:
        turns = keys  # of no use
    staged = gl.allocate_shared_memory(dtype, [BLOCKS, 1, _TILE, DIM], of_out)
    seeded = gl.allocate_shared_memory(gl.int64, [1], barrier)
    k_came = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_came = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    mbarrier.init(seeded, count=BLOCKS)
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_came.index(slot), count=1)
        mbarrier.init(v_came.index(slot), count=1)
        mbarrier.init(ready.index(slot), count=1)
        mbarrier.init(free.index(slot), count=BLOCKS)
    fence_async_shared()
    shared = (queries, keys, values, turns, staged, seeded, k_came, v_came, ready, free)
    gl.warp_specialize(
        [
            (_pool, (shared, offsets, out_tiles, highest, total, num_rows, num_seeds, scale_log2, NUM_HEADS, 0)),
            (_prepare, (shared, turned, offsets, num_rows, NUM_HEADS, ROTATED, SAVES)),
            (_bring, (
                shared, seed_tiles, k_tiles, v_tiles, angle_tiles, offsets, num_rows, NUM_HEADS, SEEDS_H, K_H, V_H,
                ROTATED,
            )),
            (_pool, (shared, offsets, out_tiles, highest, total, num_rows, num_seeds, scale_log2, NUM_HEADS, 1)),
        ][: BLOCKS + 2],
        [4, 1, 4][: BLOCKS + 1], [REST, BRINGS, REGISTERS][: BLOCKS + 1],
    )  # fmt: skip


def angles_lie(angles: Tensor | None, d: int) -> bool:
    """Whether TMA brings these angles, or there are none; they have room beside heads of 64."""
    return angles is None or (angles.dtype == torch.float32 and d == TILE and lies_for_tma(angles[:, None]))


def fits(seeds: Tensor, k: Tensor, v: Tensor, angles: Tensor | None, num_chunks: int) -> bool:
    """Whether this kernel takes these tensors, of unit last stride, as they lie.

    Fewer seeds would leave a tile half empty.
    """
    return (
        num_chunks == 1
        and v.element_size() == 2
        and TILE // 2 < len(seeds) <= MOST_SEEDS
        and seeds.shape[2] == v.shape[2]
        and v.shape[2] in (64, 128)
        and 0 < len(k) < 2**31
        and all(lies_for_tma(x) for x in (seeds, k, v))
        and angles_lie(angles, v.shape[2])
    )


def programs_of_head(constants: MetaParameters, num_rows: int, num_heads: int, device: torch.device) -> int:
    """Among how many programs the rows of each head are shared out; all heads', PROGRAMS for each multiprocessor."""
    return max(1, min(num_rows, num_walkers(device, int(constants.get("PROGRAMS", 1))) // num_heads))


def configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Two consumers fill a multiprocessor's registers, one consumer half of them; its ring what memory is left.

    With 128 seeds of heads of 64, rotated, 229,800 bytes of shared memory, with 64 seeds twice 115,040; nothing spills.
    """
    wide, blocks = int(key["d"]) == 128, -(-int(key["seeds"]) // TILE)
    if blocks == 2:
        tiles = [(1, 64, 4, 200), (1, 128, 2, 200)] if wide else [(1, 128, 4, 192), (1, 64, 6, 192)]
    else:
        tiles = [(1, 64, 4, 200)] if wide else [(2, 64, 4, 120), (1, 128, 4, 200)]
    return [
        config(PROGRAMS=programs, BLOCKS=blocks, KEYS=keys, STAGES=stages, REGISTERS=registers)
        for programs, keys, stages, registers in tiles
    ]


def arguments(
    seeds: Tensor, k: Tensor, v: Tensor, angles: Tensor | None, offsets: Tensor, out: Tensor, highest: Tensor,
    total: Tensor, turned: Tensor, num_seeds: int, _seeds_s: int, seeds_h: int, k_h: int, v_h: int, scale_log2: float,
    _num_chunks: int, _chunk_length: int, **constants: Any,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:  # fmt: skip
    """What `seed_pooling_fwd_sm90_kernel` takes, of what `seed_pooling_fwd_kernel` takes."""
    keys, blocks, registers = constants["KEYS"], constants["BLOCKS"], constants["REGISTERS"]
    angle_tiles = None if angles is None else blocks_of(angles[:, None], keys)
    tiles = blocks_of(seeds, TILE), blocks_of(k, keys), blocks_of(v, keys), angle_tiles
    wanted = ("NUM_HEADS", "ROTATED", "SAVES", "BLOCKS", "KEYS", "STAGES", "REGISTERS")
    warpgroups = blocks + 2
    each = 512 // (warpgroups * constants["PROGRAMS"]) // 8 * 8  # registers of a thread
    return (
        *tiles, offsets, blocks_of(out, TILE), highest, total, turned, len(out), num_seeds, scale_log2,
    ), {
        **{name: constants[name] for name in wanted},
        "SEEDS_H": seeds_h, "K_H": k_h, "V_H": v_h, "DIM": constants["D"],
        "REST": warpgroups * each - blocks * registers - BRINGS.value, "maxnreg": each,
    }  # fmt: skip
