"""Window attention's forward for Hopper, in Gluon: programs that walk along rows, and turn what they read on the way.

Tiles of 64 events go through a ring in shared memory: their queries, keys and values, each read from memory once. A
warpgroup, the usher, has TMA bring them, turns queries and keys in place by a table of cosines and sines, and lets
READERS other warpgroups know. These take queries' tiles in turns and hold each against the tiles of keys in its window,
with exp2 and a running maximum; out of step, so that one's softmax takes place while others multiply. TMA takes away
what was turned, which backward reads, and the output, which is staged where the queries were.

Rows of weights are summed by the tensor cores, as a product with ones: what is summed are the rounded weights that
values are multiplied with, and 64 x 64 scores take 280 instructions of a thread in place of 310.

A program has several rows and heads, one after the other in one stream of tiles, numbered throughout: the ring does not
run dry in between. The heads of a row are neighbours in time, so that they find the row's table in L2. A tile's slot is
free when the last queries that see it are done, BEHIND tiles on; so their own ring is shorter by as many.

What TMA brings beyond a row's end is the next row's, which may be NaN: scores of such keys are masked, which a NaN does
not pass, and such values are cleared. Masks cost instructions only where the window or the row has its edge in a tile.
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
)

from mfu_kernels.hopper import TILE, blocks_of, clear_from, lies_for_tma, of_product, store_part, tma_load, tma_store
from mfu_kernels.launching import config
from mfu_kernels.modes import MetaParameters

from .softmax import attend
from .turned import in_pairs, turn_in_place, turns_of

_TILE = gl.constexpr(TILE)
_MOST_HELD = 230_000  # bytes of tiles that leave room for barriers and ones


@gluon.jit
def _row(offsets, item, NUM_HEADS: gl.constexpr):
    """Where a row begins, and how long it is."""
    row = item // NUM_HEADS
    start = gl.load(offsets + row).to(gl.int64)
    return start, (gl.load(offsets + row + 1) - start).to(gl.int32)


@gluon.jit
def _usher(
    shared, sources, offsets, items, Q_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr,
    NUM_HEADS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """Have every tile brought, up to EARLY tiles before it is wanted, and turned.

    It waits for no reader whom a tile that it brings could help: EARLY tiles are as many as are spare in the ring.
    """
    queries, keys, values, came, ready, done, _ = shared
    q_tiles, k_tiles, v_tiles, turns = sources
    SLOTS: gl.constexpr = keys.shape[0]
    Q_SLOTS: gl.constexpr = queries.shape[0]
    LAPS: gl.constexpr = done.shape[0]
    DIM: gl.constexpr = keys.shape[2]
    nothing = gl.zeros([_TILE, DIM], gl.float32, in_pairs(DIM))
    step = gl.num_programs(0)
    # The item whose tiles are being brought: earlier ones had begun_before of them, its own next one is begun_i.
    begun = gl.program_id(0)
    begun_start, begun_length = _row(offsets, begun, NUM_HEADS)
    before, begun_before, begun_i = gl.program_id(0) * 0, gl.program_id(0) * 0, gl.program_id(0) * 0
    for item in range(gl.program_id(0), items, step):
        start, length = _row(offsets, item, NUM_HEADS)
        tiles = gl.cdiv(length, _TILE)
        next_cos, next_sin = turns_of(turns, nothing, start, length)
        for i in range(tiles):
            now = before + i
            while (begun_before + begun_i <= now + EARLY) & (begun < items):
                begun_tiles = gl.cdiv(begun_length, _TILE)
                if begun_i < begun_tiles:
                    number, head = begun_before + begun_i, begun % NUM_HEADS
                    last = number - Q_SLOTS
                    if last >= 0:
                        mbarrier.wait(done.index(last % LAPS), (last // LAPS) & 1)
                    slot, place = number % SLOTS, begun_start.to(gl.int32) + begun_i * _TILE
                    mbarrier.expect(came.index(slot), 3 * 2 * _TILE * DIM)
                    tma_load(k_tiles, [place, head * K_H], came.index(slot), keys.index(slot))
                    tma_load(q_tiles, [place, head * Q_H], came.index(slot), queries.index(number % Q_SLOTS))
                    tma_load(v_tiles, [place, head * V_H], came.index(slot), values.index(slot))
                    begun_i += 1
                else:
                    begun += step
                    begun_before += begun_tiles
                    begun_i *= 0
                    begun_start, begun_length = _row(offsets, gl.minimum(begun, items - 1), NUM_HEADS)
            slot, kept = now % SLOTS, length - i * _TILE
            cos, sin = next_cos, next_sin
            next_cos, next_sin = turns_of(turns, nothing, start + (i + 1) * _TILE, kept - _TILE)
            mbarrier.wait(came.index(slot), (now // SLOTS) & 1)
            if turns is not None:
                turn_in_place(keys.index(slot), queries.index(now % Q_SLOTS), cos, sin)
            if kept < _TILE:
                clear_from(values.index(slot), kept)
            fence_async_shared()
            mbarrier.arrive(ready.index(now % LAPS), count=1)
        before += tiles


@gluon.jit
def _read(
    shared, results, offsets, items, NUM_HEADS: gl.constexpr, BEHIND: gl.constexpr, AHEAD: gl.constexpr,
    READERS: gl.constexpr, READER: gl.constexpr,
):  # fmt: skip
    """A reader: every READERS-th tile of queries, from where it is ready to where its output is on its way."""
    queries, keys, _, _, ready, done, _ = shared
    out_tiles, turned_q, turned_k, out, levels, turned, num_tokens, window = results
    SLOTS: gl.constexpr = keys.shape[0]
    Q_SLOTS: gl.constexpr = queries.shape[0]
    LAPS: gl.constexpr = done.shape[0]
    DIM: gl.constexpr = keys.shape[2]
    ROW: gl.constexpr = NUM_HEADS * DIM
    rows = gl.arange(0, _TILE, gl.SliceLayout(1, of_product(_TILE)))
    before = gl.program_id(0) * 0  # tiles of earlier rows
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        start, length = _row(offsets, item, NUM_HEADS)
        head, tiles = gl.to_tensor(item) % NUM_HEADS, gl.cdiv(length, _TILE)
        for i in range((READER + (READERS - 1) * before) % READERS, tiles, READERS):
            own, token, kept = before + i, start + i * _TILE, length - i * _TILE
            own_q, own_k = queries.index(own % Q_SLOTS), keys.index(own % SLOTS)
            place = [token.to(gl.int32), head * DIM]
            mbarrier.wait(ready.index(own % LAPS), (own // LAPS) & 1)
            if turned is not None:
                if kept >= _TILE:
                    tma_store(turned_q, place, own_q)
                    tma_store(turned_k, place, own_k)
                else:
                    its = turned + token * (2 * ROW) + head * DIM
                    store_part(its, own_q, 2 * ROW, kept)
                    store_part(its + ROW, own_k, 2 * ROW, kept)
            level, total, mixed = attend(own_q, i, before, tiles, length, window, shared, BEHIND, AHEAD)
            gl.store(levels + head.to(gl.int64) * num_tokens + token + rows, level + gl.log2(total), mask=rows < kept)
            mixed = mixed * gl.convert_layout(1.0 / total, gl.SliceLayout(1, mixed.type.layout))[:, None]
            tma.store_wait(0)  # what was turned is read
            own_q.store(mixed.to(keys.dtype))
            fence_async_shared()
            if kept >= _TILE:
                tma_store(out_tiles, place, own_q)
                tma.store_wait(0)
            else:
                store_part(out + token * ROW + head * DIM, own_q, ROW, kept)
            mbarrier.arrive(done.index(own % LAPS), count=1)
        before += tiles


@gluon.jit
def window_attention_fwd_sm90_kernel(
    q_tiles, k_tiles, v_tiles, out_tiles, turned_q, turned_k, offsets, out, levels, turned, turns, items, num_tokens,
    behind, ahead, score_scale,
    Q_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr, DIM: gl.constexpr, NUM_HEADS: gl.constexpr,
    BEHIND: gl.constexpr, AHEAD: gl.constexpr, READERS: gl.constexpr, SPARE: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Output and levels of ``items`` rows and heads, and their queries and keys as they were turned, if they are."""
    dtype: gl.constexpr = q_tiles.dtype
    SLOTS: gl.constexpr = BEHIND + AHEAD + READERS + SPARE
    LAPS: gl.constexpr = 32  # more than by how many tiles any two warpgroups are apart
    tile: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM], dtype)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    queries = gl.allocate_shared_memory(dtype, [SLOTS - BEHIND, _TILE, DIM], tile)
    keys = gl.allocate_shared_memory(dtype, [SLOTS, _TILE, DIM], tile)
    values = gl.allocate_shared_memory(dtype, [SLOTS, _TILE, DIM], tile)
    came = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], barrier)
    ready = gl.allocate_shared_memory(gl.int64, [LAPS, 1], barrier)
    done = gl.allocate_shared_memory(gl.int64, [LAPS, 1], barrier)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(came.index(slot), count=1)
    for lap in gl.static_range(LAPS):
        mbarrier.init(ready.index(lap), count=1)
        mbarrier.init(done.index(lap), count=1)
    ones = gl.allocate_shared_memory(dtype, [_TILE, 8], gl.NVMMASharedLayout.get_default_for([_TILE, 8], dtype))
    ones.store(gl.full([_TILE, 8], 1.0, dtype, gl.BlockedLayout([1, 8], [32, 1], [4, 1], [1, 0])))
    fence_async_shared()
    shared = (queries, keys, values, came, ready, done, ones)
    sources = (q_tiles, k_tiles, v_tiles, turns)
    results = (out_tiles, turned_q, turned_k, out, levels, turned, num_tokens, (behind, ahead, score_scale))
    gl.warp_specialize(
        [
            (_usher, (shared, sources, offsets, items, Q_H, K_H, V_H, NUM_HEADS, SPARE)),
            (_read, (shared, results, offsets, items, NUM_HEADS, BEHIND, AHEAD, READERS, 0)),
            (_read, (shared, results, offsets, items, NUM_HEADS, BEHIND, AHEAD, READERS, 1)),
            (_read, (shared, results, offsets, items, NUM_HEADS, BEHIND, AHEAD, READERS, 2)),
        ][: 1 + READERS],
        [4] * READERS, [REGISTERS] * READERS,
    )  # fmt: skip


def tiles_seen(behind: int, ahead: int) -> dict[str, int]:
    """How many tiles of keys a tile of queries sees before its own and after it: what a config depends on."""
    return {"behind": triton.cdiv(behind, TILE), "ahead": triton.cdiv(ahead, TILE)}


def _bytes_held(d: int, behind: int, ahead: int, readers: int, spare: int) -> int:
    """By tiles of queries, keys and values, of shared memory; ``behind`` and ``ahead`` in tiles."""
    slots = behind + ahead + readers + spare
    return (3 * slots - behind) * TILE * d * 2


def fits(q: Tensor, k: Tensor, v: Tensor, behind: int, ahead: int) -> bool:
    """Whether this kernel takes these tensors, of unit last stride, as they lie, and a window so wide."""
    return (
        q.element_size() == 2
        and q.shape[2] in (64, 128)
        and bool(configs({"d": q.shape[2], **tiles_seen(behind, ahead)}))
        and q.shape[0] < 2**31
        and all(lies_for_tma(x) for x in (q, k, v))
    )


def configs(key: MetaParameters) -> Sequence[triton.Config]:
    """How many warpgroups read, how many tiles wait for them, and a reader's registers; the usher has the rest.

    On an H200, one usher held up the readers: a tile took it as long with a window of 100 as with 50, where two
    readers were 9 % faster than three, whose instructions delay it. Tiles are brought no earlier than there are spare
    ones in the ring: a tile more made two readers of heads of 128 wait for each other, 2.03 in place of 1.20 ms. Two
    ushers in turns lost to one. Two readers spill nothing, but where they rotate heads of 128: the usher spills then.
    Three spill up to 104 bytes, around the loop over keys.
    """
    d, behind, ahead = (int(key[name]) for name in ("d", "behind", "ahead"))
    tried = [(2, 2, 192), (3, 2, 136)] if d == 64 else [(2, 1, 216)]
    return [
        config(READERS=readers, SPARE=spare, REGISTERS=registers)
        for readers, spare, registers in tried
        if _bytes_held(d, behind, ahead, readers, spare) <= _MOST_HELD
    ]


def arguments(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, out: Tensor, levels: Tensor, turned: Tensor | None,
    turns: Tensor | None, num_tokens: int, _max_length: int, behind: int, ahead: int, score_scale: float,
    q_h: int, k_h: int, v_h: int, **constants: Any,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:  # fmt: skip
    """What `window_attention_fwd_sm90_kernel` takes, of what `window_attention_fwd_kernel` takes."""
    tiles = (blocks_of(x, TILE) for x in (q, k, v, out))
    turned_tiles = (None, None) if turned is None else (blocks_of(x, TILE) for x in turned.unbind(1))
    items = (offsets.shape[0] - 1) * q.shape[1]
    wanted = ("NUM_HEADS", "READERS", "SPARE", "REGISTERS")
    places = {"Q_H": q_h, "K_H": k_h, "V_H": v_h, "DIM": constants["D"]}
    window = {name.upper(): tiles for name, tiles in tiles_seen(behind, ahead).items()}
    numbers = (items, num_tokens, behind, ahead, score_scale)
    return (*tiles, *turned_tiles, offsets, out, levels, turned, turns, *numbers), {
        **{name: constants[name] for name in wanted}, **places, **window,
        "maxnreg": 512 // (1 + constants["READERS"]) // 8 * 8,  # what all threads start with
    }  # fmt: skip
