"""Window attention's backward for Hopper, in Gluon: one program for a row and head, which reads everything once.

Two warpgroups, or with wide heads one, walk along the row. A walker owns a block of 64 keys at a time: the queries that
see it go past, block by block, while dk and dv stay in its registers. What a query block wants of a key block for dq,
the change of its scores, a walker leaves in shared memory, already rounded as the product takes it; a third warpgroup
gathers it into dq. So there are five products where two kernels need seven, and q, k, v and the output's gradient are
read from memory once.

The walkers take turns with blocks of keys, the second half a block behind the first. A query block that a walker is
done with is then soon done with by the other one, too: with windows that reach two blocks each way, the gatherer has
three blocks of dq open at a time, in its registers, and shared memory holds five blocks of queries. In lockstep, or one
block of keys after the other, it would be one more of each. The gatherer adds in a fixed order: first what the block of
keys begins with, which closes a block of dq, then in turns what the block before ends with and how its own goes on.

The gatherer has the time for the rest: it has TMA bring all tiles, and lays beside each block of queries their levels
and deltas. It refills a slot without asking: a walker that has left the next change is done with the queries before,
and one that has left a block's last change is done with its keys.

A block's table of turns comes with its keys, where heads of 64 leave room for it: its walker turns dk by it, and later
the gatherer dq. There is one table more than there are blocks of keys, for it is read after the last change: when block
j + 1 comes in place of block j - 3, the walker of that one has left a change of its next, j - 1.

Keys and queries beyond the end of a row are those of the next, and their weights are masked, which a NaN there passes:
a row with NaN may spoil the row before it.
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
    warpgroup_mma,
    warpgroup_mma_wait,
)

from mfu_kernels.hopper import TILE, blocks_of, halves_of, in_chunks, lies_for_tma, of_product, tma_load
from mfu_kernels.launching import config
from mfu_kernels.tiles import LOG2E

from .turned import store_turned, turns_of

_TILE = gl.constexpr(TILE)
_LOG2E = gl.constexpr(LOG2E.value)


@gluon.jit
def _row(offsets, NUM_HEADS: gl.constexpr):
    """Where this program's row begins, how long it is, and which head is its. Each warpgroup asks: it costs less
    registers than to be told."""
    row, head = gl.program_id(0) // NUM_HEADS, gl.program_id(0) % NUM_HEADS
    start = gl.load(offsets + row).to(gl.int64)
    return start, (gl.load(offsets + row + 1) - start).to(gl.int32), head


@gluon.jit
def _turns_of_block(block, tables, turns, like, token, kept):
    """As `turns_of` has them; TMA has brought them, if there are tables."""
    if tables is None:
        return turns_of(turns, like, token, kept)
    else:
        return halves_of(tables.index(block % tables.shape[0]).load(like.type.layout))


@gluon.jit
def _against(own, block, none):
    """Begin a product of keys or values with a block of queries or gradients, [keys, queries]."""
    return warpgroup_mma(own, block.permute([1, 0]), none, use_acc=False, is_async=True)


@gluon.jit
def _walk(
    shared, dk, dv, turns, offsets, behind, ahead, scale,
    NUM_HEADS: gl.constexpr, DX_T: gl.constexpr, REACH: gl.constexpr, WALKERS: gl.constexpr, HELD: gl.constexpr,
    EARLY: gl.constexpr, WALKER: gl.constexpr,
):  # fmt: skip
    """A walker: dk and dv of every WALKERS-th block of keys. Scores are transposed, [keys, queries]."""
    queries, grads, keys, values, tables, pairs, changes, _, k_came, paired, changed, taken = shared
    SLOTS: gl.constexpr = queries.shape[0]
    KEY_SLOTS: gl.constexpr = keys.shape[0]
    DIM: gl.constexpr = queries.shape[2]
    scores_layout: gl.constexpr = of_product(_TILE)
    sums_layout: gl.constexpr = of_product(DIM)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, sums_layout, 2)
    columns_layout: gl.constexpr = gl.SliceLayout(0, scores_layout)
    rows = gl.arange(0, _TILE, gl.SliceLayout(1, scores_layout))
    no_scores = gl.zeros([_TILE, _TILE], gl.float32, scores_layout)
    nothing = gl.zeros([_TILE, DIM], gl.float32, sums_layout)
    start, length, head = _row(offsets, NUM_HEADS)
    blocks, near = gl.cdiv(length, _TILE), gl.cdiv(ahead, _TILE)
    count = 0
    for j in range(WALKER, blocks, WALKERS):
        key_slot = j % KEY_SLOTS
        k_change, v_change = nothing, nothing
        lowest = gl.maximum(j - near, 0)
        slot, phase = lowest % SLOTS, (lowest // SLOTS) & 1
        mbarrier.wait(k_came.index(key_slot), (j // KEY_SLOTS) & 1)
        own_v = values.index(key_slot)
        if HELD:
            own_v = own_v.load(gl.DotOperandLayout(0, scores_layout, 2))
        for i in range(lowest, gl.minimum(j - near + REACH, blocks)):
            mbarrier.wait(paired.index(slot), phase)  # the gatherer has seen that the block came
            scores = _against(keys.index(key_slot), queries.index(slot), no_scores)
            if EARLY:
                dweights = _against(own_v, grads.index(slot), no_scores)
            scores = warpgroup_mma_wait(1 if EARLY else 0, [scores])
            below = scores * (scale * _LOG2E) - pairs.index(2 * slot).load(columns_layout)[None, :]
            apart = (i - j) * _TILE
            columns = gl.arange(0, _TILE, columns_layout) + (count >> 30)
            if apart < _TILE - 1 - ahead:
                below = gl.where(columns[None, :] >= (rows - (ahead + apart))[:, None], below, float("-inf"))
            if (apart + _TILE - 1 > behind) | (gl.maximum(i, j) * _TILE + _TILE > length):
                last = gl.minimum(rows + (behind - apart), length - 1 - i * _TILE)
                last = gl.where(rows < length - j * _TILE, last, -1)
                below = gl.where(columns[None, :] <= last[:, None], below, float("-inf"))
            if not EARLY:
                dweights = _against(own_v, grads.index(slot), no_scores)
            weights = gl.exp2(below)
            dweights = warpgroup_mma_wait(0, [dweights])
            delta = pairs.index(2 * slot + 1).load(columns_layout)
            change = (weights * (dweights - delta[None, :])).to(keys.dtype)
            rounded = gl.convert_layout(weights.to(keys.dtype), weights_layout)
            v_change = warpgroup_mma(rounded, grads.index(slot), v_change, is_async=True)
            rounded = gl.convert_layout(change, weights_layout)
            k_change = warpgroup_mma(rounded, queries.index(slot), k_change, is_async=True)
            own = 2 * WALKER + (count & 1)
            mbarrier.wait(taken.index(own), ((count >> 1) & 1) ^ 1)
            changes.index(own).store(change)
            fence_async_shared()
            mbarrier.arrive(changed.index(own), count=1)
            count += 1
            slot += 1
            if slot == SLOTS:
                slot, phase = slot * 0, phase ^ 1
            k_change, v_change = warpgroup_mma_wait(0, [k_change, v_change])
        token, kept = start + j * _TILE, length - j * _TILE
        cos, sin = _turns_of_block(j, tables, turns, nothing, token, kept)
        store_turned(dv, v_change, cos, sin, token, head, kept, False, DX_T)
        store_turned(dk, k_change * scale, cos, sin, token, head, kept, turns is not None, DX_T)


@gluon.jit
def _bring(
    block, blocks, start, came, slots, tiles, place, other_slots, other_tiles, other_place, tables, turn_tiles,
):  # fmt: skip
    """Have TMA bring a block of 64 tokens of two tensors, if the row has it, into its slots; perhaps its turns, too."""
    TILES: gl.constexpr = 2 if tables is None else 3
    slot, token = block % slots.shape[0], start + block * _TILE
    if block < blocks:
        mbarrier.expect(came.index(slot), TILES * 2 * _TILE * slots.shape[2])
        if tables is not None:
            tma_load(turn_tiles, [token, 0], came.index(slot), tables.index(block % tables.shape[0]))
        tma_load(tiles, [token, place], came.index(slot), slots.index(slot))
        tma_load(other_tiles, [token, other_place], came.index(slot), other_slots.index(slot))


@gluon.jit
def _saved(i, out, levels, start, length, NUM_HEADS: gl.constexpr, DIM: gl.constexpr):
    """The levels and outputs of a block of queries, zeros where the row has none."""
    layout: gl.constexpr = in_chunks(DIM)
    m = gl.arange(0, _TILE, gl.SliceLayout(1, layout)) + (i >> 30)
    d = gl.arange(0, DIM, gl.SliceLayout(0, layout))
    token, inside = start + i * _TILE, m < length - i * _TILE
    places = out + token * (NUM_HEADS * DIM) + (m[:, None] * (NUM_HEADS * DIM) + d[None, :])
    mixed = gl.load(places, mask=inside[:, None] & (d >= 0)[None, :], other=0.0)
    return gl.load(levels + token + m, mask=inside, other=0.0), mixed


@gluon.jit
def _pair(i, blocks, level, mixed, grads, pairs, q_came, paired):
    """Lay beside a block of queries, if the row has it, its levels and deltas: outputs times their gradients."""
    SLOTS: gl.constexpr = grads.shape[0]
    slot = i % SLOTS
    if i < blocks:
        mbarrier.wait(q_came.index(slot), (i // SLOTS) & 1)
        grad = grads.index(slot).load(mixed.type.layout)
        pairs.index(2 * slot).store(level)
        pairs.index(2 * slot + 1).store(gl.sum(mixed.to(gl.float32) * grad.to(gl.float32), 1))
        mbarrier.arrive(paired.index(slot), count=1)


@gluon.jit
def _with_change(sums, AT: gl.constexpr, j, i, blocks, count, keys, changes, changed, taken, WALKERS: gl.constexpr):
    """``sums``, to the AT-th of which is added what block j of keys changes of block i of queries, if both exist."""
    total = sums[AT]
    if (j >= 0) & (j < blocks) & (i >= 0) & (i < blocks):
        own = 2 * (j % WALKERS) + (count & 1)
        mbarrier.wait(changed.index(own), (count >> 1) & 1)
        change, k_rows = changes.index(own).permute([1, 0]), keys.index(j % keys.shape[0])
        total = warpgroup_mma(change, k_rows, total, is_async=True)
        total = warpgroup_mma_wait(0, [total])
        mbarrier.arrive(taken.index(own), count=1)
        count += 1
    return sums[:AT] + (total,) + sums[AT + 1 :], count


@gluon.jit
def _gather(
    shared, q_tiles, k_tiles, v_tiles, grad_tiles, turn_tiles, out, levels, dq, turns, offsets, num_tokens, ahead,
    scale, Q_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr, GRAD_H: gl.constexpr,
    NUM_HEADS: gl.constexpr, DX_T: gl.constexpr, REACH: gl.constexpr, WALKERS: gl.constexpr,
):  # fmt: skip
    """The gatherer: dq. Its round j begins with block j of keys, and ends with the rest of block j - 1.

    Before it, blocks of queries from j - near on are open, and those below j + far + EARLIER have their pairs.
    """
    queries, grads, keys, values, tables, pairs, changes, q_came, k_came, paired, changed, taken = shared
    SLOTS: gl.constexpr = queries.shape[0]
    DIM: gl.constexpr = queries.shape[2]
    OWN: gl.constexpr = REACH if WALKERS == 1 else (REACH + 1) // 2  # changes by block j of keys in round j
    EARLIER: gl.constexpr = SLOTS - REACH
    sums_layout: gl.constexpr = of_product(DIM)
    nothing = gl.zeros([_TILE, DIM], gl.float32, sums_layout)
    start, length, head = _row(offsets, NUM_HEADS)
    out += head * DIM
    levels += head.to(gl.int64) * num_tokens
    blocks, near = gl.cdiv(length, _TILE), gl.cdiv(ahead, _TILE)
    far, first = REACH - 1 - near, start.to(gl.int32)
    q_place, k_place, v_place, grad_place = head * Q_H, head * K_H, head * V_H, head * GRAD_H

    for i in range(SLOTS):
        _bring(i, blocks, first, q_came, queries, q_tiles, q_place, grads, grad_tiles, grad_place, None, None)
        if i < 2:
            _bring(i, blocks, first, k_came, keys, k_tiles, k_place, values, v_tiles, v_place, tables, turn_tiles)
    for i in range(far + EARLIER):
        level, mixed = _saved(i, out, levels, start, length, NUM_HEADS, DIM)
        _pair(i, blocks, level, mixed, grads, pairs, q_came, paired)
    sums = (nothing,) * (REACH - WALKERS)
    count, count_before = 0, 0  # of changes by the walkers of blocks j and j - 1
    for j in range(blocks + near):
        i = j - near
        if j > 0:
            _bring(j + 1, blocks, first, k_came, keys, k_tiles, k_place, values, v_tiles, v_place, tables, turn_tiles)
        token, kept = start + i * _TILE, gl.where(i >= 0, length - i * _TILE, 0)
        sums, count = _with_change(sums, 0, j, i, blocks, count, keys, changes, changed, taken, WALKERS)
        if kept > 0:
            cos, sin = _turns_of_block(i, tables, turns, nothing, token, kept)
            store_turned(dq, sums[0] * scale, cos, sin, token, head, kept, turns is not None, DX_T)
        sums = sums[1:] + (nothing,)
        level, mixed = _saved(j + far + EARLIER, out, levels, start, length, NUM_HEADS, DIM)
        for r in gl.static_range(OWN):
            if r > 0:
                sums, count = _with_change(
                    sums, r - 1, j, i + r, blocks, count, keys, changes, changed, taken, WALKERS
                )  # fmt: skip
            if r + OWN < REACH:
                sums, count_before = _with_change(
                    sums, r + OWN - 2, j - 1, i + r + OWN - 1, blocks, count_before, keys, changes, changed, taken,
                    WALKERS,
                )  # fmt: skip
        _pair(j + far + EARLIER, blocks, level, mixed, grads, pairs, q_came, paired)
        if i >= 0:
            _bring(
                i + SLOTS, blocks, first, q_came, queries, q_tiles, q_place, grads, grad_tiles, grad_place, None, None
            )
        if WALKERS == 2:
            count, count_before = count_before, count


@gluon.jit
def window_attention_bwd_sm90_kernel(
    q_tiles, k_tiles, v_tiles, grad_tiles, turn_tiles, offsets, out, levels, dq, dk, dv, turns, num_tokens, behind,
    ahead, scale,
    Q_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr, GRAD_H: gl.constexpr, DIM: gl.constexpr,
    NUM_HEADS: gl.constexpr, DX_T: gl.constexpr, REACH: gl.constexpr, WALKERS: gl.constexpr, REGISTERS: gl.constexpr,
    HELD: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """dq, dk and dv of one row and head; REACH blocks of queries see a block of keys."""
    dtype: gl.constexpr = q_tiles.dtype
    SLOTS: gl.constexpr = REACH + 2 - WALKERS
    tile: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM], dtype)
    square: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, _TILE], dtype)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    queries = gl.allocate_shared_memory(dtype, [SLOTS, _TILE, DIM], tile)
    grads = gl.allocate_shared_memory(dtype, [SLOTS, _TILE, DIM], tile)
    keys = gl.allocate_shared_memory(dtype, [WALKERS + 1, _TILE, DIM], tile)
    values = gl.allocate_shared_memory(dtype, [WALKERS + 1, _TILE, DIM], tile)
    if turn_tiles is None:
        tables: gl.constexpr = None
    else:
        tables = gl.allocate_shared_memory(gl.float16, [WALKERS + 2, _TILE, DIM], tile)
    pairs = gl.allocate_shared_memory(gl.float32, [2 * SLOTS, _TILE], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    changes = gl.allocate_shared_memory(dtype, [2 * WALKERS, _TILE, _TILE], square)
    q_came = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], barrier)
    k_came = gl.allocate_shared_memory(gl.int64, [WALKERS + 1, 1], barrier)
    paired = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], barrier)
    changed = gl.allocate_shared_memory(gl.int64, [2 * WALKERS, 1], barrier)
    taken = gl.allocate_shared_memory(gl.int64, [2 * WALKERS, 1], barrier)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(q_came.index(slot), count=1)
        mbarrier.init(paired.index(slot), count=1)
    for slot in gl.static_range(WALKERS + 1):
        mbarrier.init(k_came.index(slot), count=1)
    for slot in gl.static_range(2 * WALKERS):
        mbarrier.init(changed.index(slot), count=1)
        mbarrier.init(taken.index(slot), count=1)
    fence_async_shared()
    shared = (queries, grads, keys, values, tables, pairs, changes, q_came, k_came, paired, changed, taken)
    gl.warp_specialize(
        [
            (_gather, (
                shared, q_tiles, k_tiles, v_tiles, grad_tiles, turn_tiles, out, levels, dq, turns, offsets, num_tokens,
                ahead, scale, Q_H, K_H, V_H, GRAD_H, NUM_HEADS, DX_T, REACH, WALKERS,
            )),
            (_walk, (
                shared, dk, dv, turns, offsets, behind, ahead, scale, NUM_HEADS, DX_T, REACH, WALKERS, HELD, EARLY, 0,
            )),
            (_walk, (
                shared, dk, dv, turns, offsets, behind, ahead, scale, NUM_HEADS, DX_T, REACH, WALKERS, HELD, EARLY, 1,
            )),
        ][: WALKERS + 1],
        [4] * WALKERS, [REGISTERS] * WALKERS,
    )  # fmt: skip


def blocks_seen(behind: int, ahead: int) -> int:
    """How many blocks of queries see something of a block of keys."""
    return -(-behind // TILE) + -(-ahead // TILE) + 1


def fits(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, behind: int, ahead: int) -> bool:
    """Whether this kernel takes these tensors, of unit last stride, as they lie, and a window so wide.

    What limits the window is shared memory with heads of 64, and registers with heads of 128. With heads of 64, one
    that reaches a single block is left to the plain kernels: the walkers have no half block to be apart.
    """
    least, most = {64: (3, 5), 128: (2, 3)}.get(q.shape[2], (1, 0))
    return (
        q.element_size() == 2
        and least <= blocks_seen(behind, ahead) <= most
        and q.shape[0] < 2**31
        and all(lies_for_tma(x) for x in (grad, q, k, v))
    )


def configs(d: int, seen: int) -> Sequence[triton.Config]:
    """Registers of a walker, whether it holds its values there, and whether both products for a tile begin at once.

    The gatherer has the rest of what a multiprocessor has for a program. The form wins by eight passes over memory
    where two kernels take twelve, five products for seven, and no short programs. By Triton 3.6's code for sm_90
    nothing spills, and no product waits for another without need.

    Heads of 64, five blocks seen: 223,936 bytes of shared memory with tables, 168 registers for each of three
    warpgroups. A walker takes 305 instructions for 64 x 64 scores, ten for each of a thread's, and 70 more for each
    side of the window that cuts the tile; the gatherer takes 200, turning included. Three blocks seen: 190,112 bytes.
    Heads of 128, three: 231,540 bytes, 248 registers for each of two warpgroups.

    Values in registers spare a quarter of what scores and their gradients read of shared memory. A product that begins
    with the scores is done when they are masked, but its sums are held meanwhile: only heads of 64 with three blocks
    seen have the registers for both.
    """
    walkers, registers = (1, 248) if d == 128 else (2, {3: 192, 4: 176, 5: 168}[seen])
    constants = {"REACH": seen, "WALKERS": walkers, "REGISTERS": registers}
    ways = [(0, 0), (1, 0), (0, 1), (1, 1)][: 4 if registers == 192 else 3]
    return [config(**constants, HELD=held, EARLY=early) for held, early in ways]


def arguments(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, out: Tensor, levels: Tensor, _softmax: None,
    dq: Tensor, dk: Tensor, dv: Tensor, turns: Tensor | None, num_tokens: int, _max_length: int, behind: int,
    ahead: int, scale: float, grad_h: int, q_h: int, k_h: int, v_h: int, **constants: Any,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:  # fmt: skip
    """What `window_attention_bwd_sm90_kernel` takes, of what `window_attention_dkv_kernel` takes."""
    tiles = (blocks_of(x, TILE) for x in (q, k, v, grad))
    wanted = ("NUM_HEADS", "DX_T", "REACH", "WALKERS", "REGISTERS", "HELD", "EARLY")
    places = {"Q_H": q_h, "K_H": k_h, "V_H": v_h, "GRAD_H": grad_h, "DIM": constants["D"]}
    turn_tiles = None if turns is None or constants["WALKERS"] == 1 else blocks_of(turns, TILE)
    return (*tiles, turn_tiles, offsets, out, levels, dq, dk, dv, turns, num_tokens, behind, ahead, scale), {
        **{name: constants[name] for name in wanted}, **places, "maxnreg": 248 if constants["WALKERS"] == 1 else 168,
    }  # fmt: skip
