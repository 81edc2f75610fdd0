"""The GDPA block's forward for Hopper, in Gluon: warpgroups that hold their o, and share one stream of keys and values.

`gdpa_block_fwd_kernel` reads keys and values again for every 64 events: at 256 keys, eight times the bytes of x. Here a
program's warpgroups own 64 events each and take them past one stream of keys and values, head by head, so that what the
L2 cache has to deliver falls with their number. TMA writes the stream into a ring in shared memory, block by block,
as soon as all warpgroups have left a place of it; where the ring is deep, they may fall out of step, and one norms or
activates while another one multiplies.

A warpgroup's 64 events of all heads lie in shared memory: TMA brings x, from which come mean and 1 / std, and of each
head n: as the product's left side, and as what its sum begins with. o takes the place of x there, rounded once, and
meets x again, out of the L2 cache, when the last head has told its rms. Neither o nor n crosses memory for this; for a
backward both are written, n by TMA, as o's products take their time. Beyond the end of a row that is the next row's n,
the same as its own program writes.

Events beyond the end of a row are those of the next, and not stored. Keys and values beyond num_keys are zeros;
act(0) = 0 makes their weights zero.
"""

from collections.abc import Mapping
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
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from mfu_kernels.activations_device import weights_of
from mfu_kernels.gdpa.tiles import num_splits
from mfu_kernels.hopper import TILE, begin_load, blocks_of, in_chunks, lies_for_tma, of_product, tma_load, tma_store
from mfu_kernels.launching import cdiv, config

_TILE = gl.constexpr(TILE)
SHARED = 230_400  # bytes for tiles and the ring: barriers and conversions of layouts take up to 2 KiB of what there is


@gluon.jit
def _bring(
    k_blocks, v_blocks, ring, arrived, free, row, first, length, step,
    H: gl.constexpr, BLOCKS: gl.constexpr, K_HEAD: gl.constexpr, V_HEAD: gl.constexpr,
):  # fmt: skip
    """The warps that have TMA bring keys and values: of all heads, for every round of tiles."""
    STAGES: gl.constexpr = arrived.shape[0]
    KEYS: gl.constexpr = ring.shape[2]
    count = 0
    for _ in range(first, length, step):
        for head in range(H):
            for block in range(BLOCKS):
                slot = count % STAGES
                mbarrier.wait(free.index(slot), (count // STAGES + 1) & 1)  # at once, the first time
                keys, values = ring.index(2 * slot), ring.index(2 * slot + 1)
                mbarrier.expect(arrived.index(slot), 2 * keys.numel * 2)
                tma_load(k_blocks, [row, block * KEYS, head * K_HEAD], arrived.index(slot), keys)
                tma_load(v_blocks, [row, block * KEYS, head * V_HEAD], arrived.index(slot), values)
                count += 1


@gluon.jit
def _layer_norm_statistics(tiles, eps, layout: gl.constexpr, H: gl.constexpr, GROUP: gl.constexpr):
    """Mean and 1 / std of each event over all heads, merged as `gdpa_block_fwd_kernel` does it."""
    DIM: gl.constexpr = tiles.shape[2]
    mean = gl.zeros([_TILE], gl.float32, gl.SliceLayout(1, layout))
    squares = gl.zeros([_TILE], gl.float32, gl.SliceLayout(1, layout))
    for head in range(H):
        x = tiles.index(GROUP * H + head).load(layout).to(gl.float32)
        of_head = gl.sum(x, axis=1) / DIM
        deviations = x - of_head[:, None]
        step, share = of_head - mean, 1.0 / (head + 1)
        mean += step * share
        squares += gl.sum(deviations * deviations, axis=1) + step * step * (DIM * head * share)
    return mean, gl.rsqrt(squares / (H * DIM) + eps)


@gluon.jit
def _finish(
    x_tiles, x, out, inner, statistics, num_events, tiles, ready, rstd, rrms, event, left, step,
    H: gl.constexpr, X_ROW: gl.constexpr, X_HEAD: gl.constexpr, SAVE: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """out = x + o / rms(o) for at most ``left`` of 64 events from ``event`` on; if SAVE, also what a backward needs.

    As soon as o of a head is read, TMA brings x in its place, of the events ``step`` further on.
    """
    DIM: gl.constexpr = tiles.shape[2]
    FEATURES: gl.constexpr = H * DIM
    layout: gl.constexpr = in_chunks(DIM)
    none = (event >> 62).to(gl.int32)  # so that addresses are made here: held for the whole loop, they spill
    of_rows: gl.constexpr = gl.SliceLayout(1, layout)
    rows = gl.arange(0, _TILE, of_rows) + none
    columns = gl.arange(0, DIM, gl.SliceLayout(0, layout))
    kept = (rows < left)[:, None] & (columns >= 0)[None, :]
    rrms = gl.convert_layout(rrms, of_rows)
    x += event * X_ROW + (rows[:, None] * X_ROW + columns[None, :])
    places = event * FEATURES + (rows[:, None] * FEATURES + columns[None, :])
    ahead = gl.load(x, mask=kept, other=0.0)
    if DIM == 64:  # three heads, which take 1.52 ms where one takes 1.56 on an H200 (six heads); of 128, they spill
        second = gl.load(x + X_HEAD, mask=kept & (H > 1), other=0.0)
        third = gl.load(x + 2 * X_HEAD, mask=kept & (H > 2), other=0.0)
    for head in range(H):
        o = tiles.index(GROUP * H + head).load(layout)
        fence_async_shared()
        place = [(event + step).to(gl.int32), head * X_HEAD]
        begin_load(tiles.index(GROUP * H + head), ready.index(GROUP), x_tiles, place, step < left)
        tile = ahead
        if DIM == 64:
            ahead, second = second, third
            third = gl.load(x + (head + 3) * X_HEAD, mask=kept & (head + 3 < H), other=0.0)
        elif head + 1 < H:
            ahead = gl.load(x + (head + 1) * X_HEAD, mask=kept, other=0.0)
        if SAVE:
            gl.store(inner + places + head * DIM, o, mask=kept)
        result = tile.to(gl.float32) + o.to(gl.float32) * rrms[:, None]
        gl.store(out + places + head * DIM, result.to(tiles.dtype), mask=kept)
    if SAVE:
        statistics += event + rows
        gl.store(statistics, rrms, mask=rows < left)
        gl.store(statistics + num_events, gl.convert_layout(rstd, of_rows), mask=rows < left)


@gluon.jit
def _attend(
    x_tiles, n_tiles, x, out, inner, statistics, num_events, tiles, ready, ring, arrived, free,
    scale, eps, start, first, length, step,
    H: gl.constexpr, BLOCKS: gl.constexpr, X_ROW: gl.constexpr, X_HEAD: gl.constexpr,
    BOUNDS: gl.constexpr, NAMES: gl.constexpr, SCALED: gl.constexpr, SAVE: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """One warpgroup: in each round 64 events, past keys and values of all heads."""
    STAGES: gl.constexpr = arrived.shape[0]
    KEYS: gl.constexpr = ring.shape[2]
    DIM: gl.constexpr = tiles.shape[2]
    dtype: gl.constexpr = tiles.dtype
    scores_layout: gl.constexpr = of_product(KEYS)
    o_layout: gl.constexpr = of_product(DIM)
    queries_layout: gl.constexpr = gl.DotOperandLayout(0, scores_layout, 2)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    no_scores = gl.zeros([_TILE, KEYS], gl.float32, scores_layout)

    at = first + GROUP * _TILE
    count, turn = 0, 0
    for head in range(H):
        place = [(start + at).to(gl.int32), head * X_HEAD]
        begin_load(tiles.index(GROUP * H + head), ready.index(GROUP), x_tiles, place, at < length)
    while at < length:
        mbarrier.wait(ready.index(GROUP), turn & 1)
        mean, rstd = _layer_norm_statistics(tiles, eps, o_layout, H, GROUP)
        moved = mean * -rstd
        squares = gl.zeros([_TILE], gl.float32, gl.SliceLayout(1, o_layout))
        for run in gl.static_range(len(NAMES)):
            for head in range(BOUNDS[run], BOUNDS[run + 1]):
                tile = tiles.index(GROUP * H + head).load(o_layout).to(gl.float32)
                n = gl.fma(tile, rstd[:, None], moved[:, None])
                if SAVE:  # beyond the row's end, the n that its own program writes there
                    tiles.index(GROUP * H + head).store(n.to(dtype))
                    fence_async_shared()
                    tma_store(n_tiles, [(start + at).to(gl.int32), head * DIM], tiles.index(GROUP * H + head))
                queries = gl.convert_layout((n * scale if SCALED else n).to(dtype), queries_layout)
                o = warpgroup_mma_init(n)
                before = 0
                for block in gl.static_range(BLOCKS):
                    slot = count % STAGES
                    mbarrier.wait(arrived.index(slot), count // STAGES & 1)
                    k_columns = ring.index(2 * slot).reshape([KEYS, DIM]).permute([1, 0])
                    scores = warpgroup_mma(queries, k_columns, no_scores, use_acc=False, is_async=True)
                    scores, total = warpgroup_mma_wait(0, [scores, o])  # the values' product before was in flight
                    if block > 0:
                        mbarrier.arrive(free.index(before))
                    weights = gl.convert_layout(weights_of(scores, gl.constexpr(NAMES[run]), dtype), weights_layout)
                    v_rows = ring.index(2 * slot + 1).reshape([KEYS, DIM])
                    o = warpgroup_mma(weights, v_rows, total, is_async=True)
                    before = slot
                    count += 1
                total = warpgroup_mma_wait(0, [o])
                mbarrier.arrive(free.index(before))
                squares += gl.sum(total * total, axis=1)
                if SAVE:
                    tma.store_wait(0)  # n is read
                tiles.index(GROUP * H + head).store(total.to(dtype))
        rrms = gl.rsqrt(squares / (H * DIM) + eps)
        _finish(
            x_tiles, x, out, inner, statistics, num_events, tiles, ready,
            rstd, rrms, start + at, length - at, step, H, X_ROW, X_HEAD, SAVE, GROUP,
        )  # fmt: skip
        at += step
        turn += 1
    if at - GROUP * _TILE < length:  # a round of others alone
        for _ in range(H * BLOCKS):
            mbarrier.wait(arrived.index(count % STAGES), count // STAGES & 1)
            mbarrier.arrive(free.index(count % STAGES))
            count += 1


@gluon.jit
def _take_part(
    x_tiles, n_tiles, k_blocks, v_blocks, x, out, inner, statistics, num_events, tiles, ready, ring, arrived, free,
    scale, eps, row, start, first, length, step,
    H: gl.constexpr, BLOCKS: gl.constexpr, X_ROW: gl.constexpr, X_HEAD: gl.constexpr, K_HEAD: gl.constexpr,
    V_HEAD: gl.constexpr, BOUNDS: gl.constexpr, NAMES: gl.constexpr, SCALED: gl.constexpr, SAVE: gl.constexpr,
    MEMBER: gl.constexpr,
):  # fmt: skip
    """Member 0 of a program brings keys and values, the others are its warpgroups."""
    if MEMBER == 0:
        _bring(k_blocks, v_blocks, ring, arrived, free, row, first, length, step, H, BLOCKS, K_HEAD, V_HEAD)
    else:
        _attend(
            x_tiles, n_tiles, x, out, inner, statistics, num_events, tiles, ready, ring, arrived, free,
            scale, eps, start, first, length, step,
            H, BLOCKS, X_ROW, X_HEAD, BOUNDS, NAMES, SCALED, SAVE, MEMBER - 1,
        )  # fmt: skip


@gluon.jit
def gdpa_block_fwd_sm90_kernel(
    x_tiles, n_tiles, k_blocks, v_blocks, offsets, x, out, inner, statistics, num_events, scale, eps, splits,
    H: gl.constexpr, DIM: gl.constexpr,
    X_ROW: gl.constexpr, X_HEAD: gl.constexpr, K_HEAD: gl.constexpr, V_HEAD: gl.constexpr,
    BOUNDS: gl.constexpr, NAMES: gl.constexpr, SCALED: gl.constexpr, SAVE: gl.constexpr,
    KEYS: gl.constexpr, BLOCKS: gl.constexpr, STAGES: gl.constexpr, GROUPS: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    """One row, or one of ``splits`` shares of its events, in rounds of GROUPS warpgroups."""
    dtype: gl.constexpr = x_tiles.dtype
    tile_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM], dtype)
    block_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, KEYS, DIM], dtype)
    share, row = gl.program_id(0) % splits, gl.program_id(0) // splits
    start = gl.load(offsets + row).to(gl.int64)
    length = (gl.load(offsets + row + 1) - start).to(gl.int32)
    first, step = share * GROUPS * _TILE, splits * GROUPS * _TILE

    tiles = gl.allocate_shared_memory(dtype, [GROUPS * H, _TILE, DIM], tile_layout)
    ring = gl.allocate_shared_memory(dtype, [2 * STAGES, 1, KEYS, DIM], block_layout)
    ready = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], mbarrier.MBarrierLayout())
    arrived = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for group in gl.static_range(GROUPS):
        mbarrier.init(ready.index(group), count=H)
    for slot in gl.static_range(STAGES):
        mbarrier.init(arrived.index(slot), count=1)
        mbarrier.init(free.index(slot), count=GROUPS)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_take_part, (
                x_tiles, n_tiles, k_blocks, v_blocks, x, out, inner, statistics, num_events, tiles, ready, ring,
                arrived, free, scale, eps, row, start, first, length, step,
                H, BLOCKS, X_ROW, X_HEAD, K_HEAD, V_HEAD, BOUNDS, NAMES, SCALED, SAVE, member,
            ))
            for member in (0, 1, 2, 3)[: GROUPS + 1]
        ],
        [4] * GROUPS, [REGISTERS] * GROUPS,
    )  # fmt: skip


def fits(x: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether this kernel takes these tensors as they lie.

    With up to 64 keys there is nothing to gain: memory is the limit. Blocks of keys are unrolled: not for many.
    """
    return (
        x.element_size() == 2
        and x.dtype == k.dtype == v.dtype
        and x.shape[2] in (64, 128)
        and 64 < k.shape[1] <= 512
        and x.shape[0] < 2**31
        and all(lies_for_tma(tensor) for tensor in (x, k, v))
    )


def configs(features: int, d: int, keys: int) -> list[triton.Config]:
    """What fits a multiprocessor, of ``features`` numbers an event in heads of ``d``, the ring as deep as that allows.

    Three warpgroups see a key and its value once for 192 events, with 160 registers each: enough for heads of 64. Two
    have 240, and with heads of 64 room for larger blocks, which meet fewer barriers, and were the fastest. None spills
    but three with such blocks, 48 bytes. One would have nobody to multiply while it does other things.

    Where all processors have rows of their own, the keys and values of all those rows do not fit in the L2 cache: on an
    H200 device memory moved 4.8 GB for 2.5 (256 keys, six heads of 64), as every round read them there. SHARES programs
    of one row, side by side, read them once: 1.47 in place of 1.72 ms, and with heads of 128 2.07 in place of 2.42.
    """
    found = []
    for shares in (3, 6, 2, 1):
        for size, groups, registers in ((128, 2, 240), (64, 3, 160), (128, 3, 160), (64, 2, 240)):
            stages = min(6, (SHARED - groups * TILE * features * 2) // (4 * size * d))
            if stages >= 2 and size <= keys and (d == 64 or (size, groups) == (64, 2)):
                found.append(config(KEYS=size, STAGES=stages, GROUPS=groups, REGISTERS=registers, SHARES=shares))
    return found


def programs_of_row(rows: int, max_length: int, device: torch.device, chosen: Mapping[str, Any]) -> int:
    """Among how many programs a row's events are shared out; no more than have a round of tiles."""
    rounds = -(-max_length // (int(chosen["GROUPS"]) * TILE))
    return max(1, min(int(chosen["SHARES"]) * num_splits(rows, max_length, device), rounds))


def arguments(
    x: Tensor, k: Tensor, v: Tensor, offsets: Tensor, out: Tensor, normed: Tensor, inner: Tensor, statistics: Tensor,
    num_events: int, num_keys: int, max_length: int, scale: float, eps: float, k_strides: Any, v_strides: Any,
    **constants: Any,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:  # fmt: skip
    """What `gdpa_block_fwd_sm90_kernel` takes, of what `gdpa_block_fwd_kernel` takes."""
    size, groups, registers = (constants[name] for name in ("KEYS", "GROUPS", "REGISTERS"))
    n_tiles = blocks_of(normed, TILE) if constants["SAVE"] else None
    tiles = blocks_of(x, TILE), n_tiles, blocks_of(k, size), blocks_of(v, size)
    splits = programs_of_row(k.shape[0], max_length, x.device, constants)
    wanted = ("H", "DIM", "X_ROW", "X_HEAD", "BOUNDS", "NAMES", "SCALED", "SAVE")
    chosen = ("KEYS", "STAGES", "GROUPS", "REGISTERS")
    # What all threads start with; then those that bring keys and values leave theirs to the others.
    shared_out = cdiv(groups * registers + 24, 8 * (groups + 1)) * 8
    return (*tiles, offsets, x, out, inner, statistics, num_events, scale, eps, splits), {
        **{name: constants[name] for name in (*wanted, *chosen)}, "BLOCKS": cdiv(num_keys, size),
        "K_HEAD": k_strides[2], "V_HEAD": v_strides[2], "maxnreg": shared_out,
    }  # fmt: skip
