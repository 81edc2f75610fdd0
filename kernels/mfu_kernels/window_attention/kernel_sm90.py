"""Window attention's backward for Hopper, in Gluon."""

from collections.abc import Mapping
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

from mfu_kernels.hopper import TILE, blocks_of, lies_for_tma, tma_load
from mfu_kernels.launching import config
from mfu_kernels.tiles import LOG2E

_TILE = gl.constexpr(TILE)
_LOG2E = gl.constexpr(LOG2E.value)


@gluon.jit
def _row(offsets, NUM_HEADS: gl.constexpr):
    """Where this program's row begins, how long it is, and which head is its."""
    row, head = gl.program_id(0) // NUM_HEADS, gl.program_id(0) % NUM_HEADS
    start = gl.load(offsets + row).to(gl.int64)
    return start, (gl.load(offsets + row + 1) - start).to(gl.int32), head


@gluon.jit
def _store_columns(x, columns, count, ROW: gl.constexpr):
    """Write the first ``count`` rows of a tile to ``x``, 16 bytes a thread."""
    WIDTH: gl.constexpr = columns.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    n = gl.arange(0, _TILE, gl.SliceLayout(1, layout)) + (count >> 30)
    d = gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    kept = (n < count)[:, None] & (d >= 0)[None, :]
    tile = gl.convert_layout(columns.to(x.dtype.element_ty), layout)
    gl.store(x + (n[:, None] * ROW + d[None, :]), tile, mask=kept)


@gluon.jit
def _store(x, change, turns, token, head, count, ROW: gl.constexpr):
    """Write ``count`` rows of a gradient to ``x`` from ``token`` on; where there are ``turns``, turned by them."""
    HALF: gl.constexpr = change.shape[1] // 2
    x += token * ROW + head * (2 * HALF)
    first, second = change.reshape([_TILE, 2, HALF]).permute([0, 2, 1]).split()
    if turns is not None:
        layout: gl.constexpr = first.type.layout
        n = gl.arange(0, _TILE, gl.SliceLayout(1, layout)) + (count >> 30)
        d = gl.arange(0, HALF, gl.SliceLayout(0, layout))
        places = turns + token * (2 * HALF) + (n[:, None] * (2 * HALF) + d[None, :])
        kept = (n < count)[:, None] & (d >= 0)[None, :]
        cos = gl.load(places, mask=kept, other=0.0).to(gl.float32)
        sin = gl.load(places + HALF, mask=kept, other=0.0).to(gl.float32)
        first, second = first * cos - second * sin, first * sin + second * cos
    _store_columns(x, first, count, ROW)
    _store_columns(x + HALF, second, count, ROW)


@gluon.jit
def _walk(
    queries, grads, keys, values, pairs, changes, q_came, k_came, paired, changed, taken,
    dk, dv, turns, offsets, behind, ahead, scale, NUM_HEADS: gl.constexpr,
    WALKER: gl.constexpr, WALKERS: gl.constexpr, REACH: gl.constexpr, DX_T: gl.constexpr,
):  # fmt: skip
    """One warpgroup: every WALKERS-th block of keys, past which the queries go that see it."""
    SLOTS: gl.constexpr = queries.shape[0]
    KEY_SLOTS: gl.constexpr = keys.shape[0]
    DIM: gl.constexpr = queries.shape[2]
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, _TILE, 16])
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, sums_layout, 2)
    columns_layout: gl.constexpr = gl.SliceLayout(0, scores_layout)
    rows = gl.arange(0, _TILE, gl.SliceLayout(1, scores_layout))
    queries_held = gl.arange(0, _TILE, columns_layout)
    no_scores = gl.zeros([_TILE, _TILE], gl.float32, scores_layout)
    nothing = gl.zeros([_TILE, DIM], gl.float32, sums_layout)

    start, length, head = _row(offsets, NUM_HEADS)
    blocks, near = gl.cdiv(length, _TILE), gl.cdiv(ahead, _TILE)
    count = 0
    for j in range(WALKER, blocks, WALKERS):
        at = j % KEY_SLOTS
        k_change, v_change = nothing, nothing
        mbarrier.wait(k_came.index(at), (j // KEY_SLOTS) & 1)
        for i in range(gl.maximum(j - near, 0), gl.minimum(j - near + REACH, blocks)):
            slot = i % SLOTS
            phase = (i // SLOTS) & 1
            mbarrier.wait(q_came.index(slot), phase)
            mbarrier.wait(paired.index(slot), phase)
            q_columns, grad_columns = queries.index(slot).permute([1, 0]), grads.index(slot).permute([1, 0])
            scores = warpgroup_mma(keys.index(at), q_columns, no_scores, use_acc=False, is_async=True)
            scores = warpgroup_mma_wait(0, [scores])
            level = pairs.index(2 * slot).load(columns_layout)
            below = scores * (scale * _LOG2E) - level[None, :]
            apart = (i - j) * _TILE
            columns = queries_held + (count >> 30)  # made where they are used: held for the whole loop, they spill
            if apart < _TILE - 1 - ahead:
                below = gl.where(columns[None, :] >= (rows - (ahead + apart))[:, None], below, float("-inf"))
            if (apart + _TILE - 1 > behind) | (gl.maximum(i, j) * _TILE + _TILE > length):
                last = gl.minimum(rows + (behind - apart), length - 1 - i * _TILE)
                last = gl.where(rows < length - j * _TILE, last, -1)
                below = gl.where(columns[None, :] <= last[:, None], below, float("-inf"))
            dweights = warpgroup_mma(values.index(at), grad_columns, no_scores, use_acc=False, is_async=True)
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
            k_change, v_change = warpgroup_mma_wait(0, [k_change, v_change])
        token, kept = start + j * _TILE, length - j * _TILE
        _store(dv, v_change, None, token, head, kept, DX_T)
        _store(dk, k_change * scale, turns, token, head, kept, DX_T)


@gluon.jit
def _bring(first, second, came, tiles, other_tiles, block, place, other_place, start, blocks):
    """Have TMA bring a block of 64 tokens of two tensors, if the row has it, into its slots."""
    slot = block % first.shape[0]
    if block < blocks:
        mbarrier.expect(came.index(slot), 2 * 2 * _TILE * first.shape[2])
        tma_load(tiles, [start + block * _TILE, place], came.index(slot), first.index(slot))
        tma_load(other_tiles, [start + block * _TILE, other_place], came.index(slot), second.index(slot))


@gluon.jit
def _pair(out, levels, grads, pairs, q_came, paired, i, start, length, NUM_HEADS: gl.constexpr):
    """Lay beside a block of queries, if the row has it, its levels and its deltas."""
    SLOTS: gl.constexpr = grads.shape[0]
    DIM: gl.constexpr = grads.shape[2]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    PART: gl.constexpr = _TILE // 2  # at a time, for the sake of registers
    slot = i % SLOTS
    m = gl.arange(0, PART, gl.SliceLayout(1, layout))
    d = gl.arange(0, DIM, gl.SliceLayout(0, layout))
    if i * _TILE < length:
        mbarrier.wait(q_came.index(slot), (i // SLOTS) & 1)
        for part in gl.static_range(_TILE // PART):
            first = i * _TILE + part * PART
            token, inside = start + first, m < length - first
            level = gl.load(levels + token + m, mask=inside, other=0.0)
            places = out + token * (NUM_HEADS * DIM) + (m[:, None] * (NUM_HEADS * DIM) + d[None, :])
            mixed = gl.load(places, mask=inside[:, None] & (d >= 0)[None, :], other=0.0)
            grad = grads.index(slot).slice(part * PART, PART).load(layout)
            pairs.index(2 * slot).slice(part * PART, PART).store(level)
            delta = gl.sum(mixed.to(gl.float32) * grad.to(gl.float32), 1)
            pairs.index(2 * slot + 1).slice(part * PART, PART).store(delta)
        mbarrier.arrive(paired.index(slot), count=1)


@gluon.jit
def _taken(sums, AT: gl.constexpr, keys, changes, changed, taken, j, i, count, blocks, WALKERS: gl.constexpr):
    """``sums`` with what block j of keys changes of block i of queries, if there are both, added to the AT-th."""
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
    q_tiles, k_tiles, v_tiles, grad_tiles, out, levels, queries, grads, keys, values, pairs, changes,
    q_came, k_came, paired, changed, taken, dq, turns, offsets, num_tokens, ahead, scale,
    NUM_HEADS: gl.constexpr, WALKERS: gl.constexpr, REACH: gl.constexpr, Q_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr,
    GRAD_H: gl.constexpr, DX_T: gl.constexpr,
):  # fmt: skip
    """The warpgroup that brings everything, and gathers ``dq`` from what the walkers leave."""
    SLOTS: gl.constexpr = queries.shape[0]
    DIM: gl.constexpr = queries.shape[2]
    AT_ONCE: gl.constexpr = REACH if WALKERS == 1 else (REACH + 1) // 2
    SOONER: gl.constexpr = SLOTS - REACH
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    nothing = gl.zeros([_TILE, DIM], gl.float32, sums_layout)
    start, length, head = _row(offsets, NUM_HEADS)
    out += head * DIM
    levels += head.to(gl.int64) * num_tokens
    blocks, near = gl.cdiv(length, _TILE), gl.cdiv(ahead, _TILE)
    first = start.to(gl.int32)
    far = REACH - 1 - near

    for i in range(SLOTS):
        _bring(queries, grads, q_came, q_tiles, grad_tiles, i, head * Q_H, head * GRAD_H, first, blocks)
        if i < 2:
            _bring(keys, values, k_came, k_tiles, v_tiles, i, head * K_H, head * V_H, first, blocks)
    for i in range(far + SOONER):
        _pair(out, levels, grads, pairs, q_came, paired, i, start, length, NUM_HEADS)

    sums = (nothing,) * (REACH - WALKERS)
    count, behind_count = 0, 0
    for j in range(blocks + near):
        if j > 0:
            _bring(keys, values, k_came, k_tiles, v_tiles, j + 1, head * K_H, head * V_H, first, blocks)
        sums, count = _taken(sums, 0, keys, changes, changed, taken, j, j - near, count, blocks, WALKERS)
        if (j >= near) & (j - near < blocks):
            i = j - near
            _store(dq, sums[0] * scale, turns, start + i * _TILE, head, length - i * _TILE, DX_T)
        sums = sums[1:] + (nothing,)
        for r in gl.static_range(AT_ONCE):
            if r > 0:
                sums, count = _taken(
                    sums, r - 1, keys, changes, changed, taken, j, j - near + r, count, blocks, WALKERS
                )
            if r + AT_ONCE < REACH:
                sums, behind_count = _taken(
                    sums, r + AT_ONCE - 2, keys, changes, changed, taken, j - 1, j - 1 - near + r + AT_ONCE,
                    behind_count, blocks, WALKERS,
                )  # fmt: skip
        _pair(out, levels, grads, pairs, q_came, paired, j + far + SOONER, start, length, NUM_HEADS)
        if j >= near:
            _bring(
                queries, grads, q_came, q_tiles, grad_tiles, j - near + SLOTS, head * Q_H, head * GRAD_H, first, blocks
            )
        if WALKERS == 2:
            count, behind_count = behind_count, count


@gluon.jit
def window_attention_bwd_sm90_kernel(
    q_tiles, k_tiles, v_tiles, grad_tiles, offsets, out, levels, dq, dk, dv, turns, num_tokens, behind, ahead, scale,
    NUM_HEADS: gl.constexpr, Q_H: gl.constexpr, K_H: gl.constexpr, V_H: gl.constexpr, GRAD_H: gl.constexpr,
    DX_T: gl.constexpr, DIM: gl.constexpr, WALKERS: gl.constexpr, REACH: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """dq, dk and dv of one row and head."""
    dtype: gl.constexpr = q_tiles.dtype
    SLOTS: gl.constexpr = REACH + 2 - WALKERS
    tile_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM], dtype)
    change_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, _TILE], dtype)
    pairs_layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    barrier: gl.constexpr = mbarrier.MBarrierLayout()

    queries = gl.allocate_shared_memory(dtype, [SLOTS, _TILE, DIM], tile_layout)
    grads = gl.allocate_shared_memory(dtype, [SLOTS, _TILE, DIM], tile_layout)
    keys = gl.allocate_shared_memory(dtype, [WALKERS + 1, _TILE, DIM], tile_layout)
    values = gl.allocate_shared_memory(dtype, [WALKERS + 1, _TILE, DIM], tile_layout)
    changes = gl.allocate_shared_memory(dtype, [2 * WALKERS, _TILE, _TILE], change_layout)
    pairs = gl.allocate_shared_memory(gl.float32, [2 * SLOTS, _TILE], pairs_layout)
    q_came = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], barrier)
    paired = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], barrier)
    k_came = gl.allocate_shared_memory(gl.int64, [WALKERS + 1, 1], barrier)
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
    if WALKERS == 1:
        gl.warp_specialize(
            [
                (_gather, (
                    q_tiles, k_tiles, v_tiles, grad_tiles, out, levels, queries, grads, keys, values, pairs, changes,
                    q_came, k_came, paired, changed, taken, dq, turns, offsets, num_tokens, ahead, scale,
                    NUM_HEADS, WALKERS, REACH, Q_H, K_H, V_H, GRAD_H, DX_T,
                )),
                (_walk, (
                    queries, grads, keys, values, pairs, changes, q_came, k_came, paired, changed, taken,
                    dk, dv, turns, offsets, behind, ahead, scale, NUM_HEADS, 0, WALKERS, REACH, DX_T,
                )),
            ],
            [4], [REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_gather, (
                    q_tiles, k_tiles, v_tiles, grad_tiles, out, levels, queries, grads, keys, values, pairs, changes,
                    q_came, k_came, paired, changed, taken, dq, turns, offsets, num_tokens, ahead, scale,
                    NUM_HEADS, WALKERS, REACH, Q_H, K_H, V_H, GRAD_H, DX_T,
                )),
                (_walk, (
                    queries, grads, keys, values, pairs, changes, q_came, k_came, paired, changed, taken,
                    dk, dv, turns, offsets, behind, ahead, scale, NUM_HEADS, 0, WALKERS, REACH, DX_T,
                )),
                (_walk, (
                    queries, grads, keys, values, pairs, changes, q_came, k_came, paired, changed, taken,
                    dk, dv, turns, offsets, behind, ahead, scale, NUM_HEADS, 1, WALKERS, REACH, DX_T,
                )),
            ],
            [4, 4], [REGISTERS, REGISTERS],
        )  # fmt: skip


def blocks_seen(behind: int, ahead: int) -> int:
    """How many blocks of queries see something of a block of keys."""
    return -(-behind // TILE) + -(-ahead // TILE) + 1


def fits(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, behind: int, ahead: int) -> bool:
    """Whether this kernel takes these tensors, of unit last stride, as they lie, and a window so wide."""
    least, most = {64: (3, 5), 128: (2, 3)}.get(q.shape[2], (1, 0))
    return (
        q.element_size() == 2
        and least <= blocks_seen(behind, ahead) <= most
        and q.shape[0] < 2**31
        and all(lies_for_tma(x) for x in (grad, q, k, v))
    )


def configs(d: int, seen: int) -> list[triton.Config]:
    """Walkers and registers of each by head dimension and blocks seen."""
    walkers, registers = {64: (2, 192 if seen == 3 else 168), 128: (1, 248)}[d]
    return [config(WALKERS=walkers, REACH=seen, REGISTERS=registers)]


def arguments(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, out: Tensor, levels: Tensor, _softmax: Tensor,
    dq: Tensor, dk: Tensor, dv: Tensor, turns: Tensor | None, num_tokens: int, _max_length: int, behind: int,
    ahead: int, scale: float, grad_h: int, q_h: int, k_h: int, v_h: int, **constants: Any,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:  # fmt: skip
    """What `window_attention_bwd_sm90_kernel` takes, of what `window_attention_dkv_kernel` takes."""
    tiles = (blocks_of(x, TILE) for x in (q, k, v, grad))
    wanted = ("NUM_HEADS", "DX_T", "WALKERS", "REACH", "REGISTERS")
    places = {"Q_H": q_h, "K_H": k_h, "V_H": v_h, "GRAD_H": grad_h, "DIM": constants["D"]}
    return (*tiles, offsets, out, levels, dq, dk, dv, turns, num_tokens, behind, ahead, scale), {
        **{name: constants[name] for name in wanted}, **places, "maxnreg": 168 if constants["WALKERS"] == 2 else 248,
    }  # fmt: skip
