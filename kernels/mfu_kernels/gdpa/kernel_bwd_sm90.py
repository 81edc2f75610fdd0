"""GDPA's backward for Hopper, in Gluon: warpgroups that hold keys, and queries that stream past them.

Two warpgroups share the keys of one row and head, and a warp brings the queries and their gradients by TMA, through a
ring of STAGES tiles of 64. A warpgroup works on 64 keys at a time: scores and the weights' gradients are made
transposed, [keys, queries], so that weights and changes (gradients of scores) are, as they lie in registers, the left
operands of dv += weights grads and dk += changes queries, whose sums stay in registers: 128 of a thread, which is a
block of 64 keys for heads of 128, and two blocks for heads of 64. A warpgroup waits for its products; meanwhile the
other one's, or its activations, take place.

dq = changesᵀ keys needs the changes of both: they pass them on through shared memory, in two slots, and take turns, one
at dq of even tiles and the other of odd ones, a tile late, so that neither waits for the other. The sum over all
keys is made by one chain of products: no atomics, and the same bits each time. Where not all keys fit (256 with heads
of 128), the queries are walked twice, and the second walk, backwards, adds to the dq that the first one wrote; where dq
is not wanted, each half of the keys has a program of its own. If ADDS, the first walk adds the tile's gradients, which
keep their place in the ring until its dq is made: a ring has three places or more.

What TMA brings beyond the end of a row is the next row's, which may be anything: a row's last tile is cleared from its
end on, queries by one warpgroup and gradients by the other. Keys and values beyond num_keys are zeros: so are their
weights, as act(0) = 0, and their changes, as the weights' gradients are.

A config takes 240 registers of 504 that three warpgroups' threads share, one of each: what is made of 64 x 64 scores
needs 192 and some 40 for addresses, weights and changes. ``none`` is zero, but no compiler knows: addresses made with
it are made where they are used, and those that are not, are held for the whole loop, and spill.

A third warpgroup in the bringing warp's place, which makes dq of all tiles, has no registers, by ptxas 12.8. One that
holds two blocks of keys of 64 columns needs 224: at 216 its products are serialised, and 768 bytes spill. That leaves
56, and 32 sums of dq beside their addresses take 64; 16 at a time compile, and read the changes twice.

What a warp with two such blocks does for a tile is some 4200 clocks beside its products, by the stalls in the compiled
code and 22 clocks for a tanh. Two activations are 2600 of them, with 350 instructions each: few tanh are on their way
at a time, in whatever order the assembly has them. Stores of dq are 60, and TMA in their place is no less.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from mfu_kernels.activations_device import weights_and_changes
from mfu_kernels.hopper import (
    TILE,
    begin_load,
    blocks_of,
    clear_from,
    fetch_part,
    of_product,
    places_of,
    store_part,
)

from . import kernel_sm90

_TILE = gl.constexpr(TILE)
POOL = 504  # registers that threads of three warpgroups share, one of each


@gluon.jit
def _write(out, stride, count, total, staged):
    """The first ``count`` rows of a gradient of keys or values, in 16 bits or, where shares of it are summed, in 32."""
    if out.dtype.element_ty == staged.dtype:
        staged.store(total.to(staged.dtype))
        store_part(out, staged, stride, count)
    else:
        places, kept = places_of(stride, count, 0, staged.shape[1], of_product(staged.shape[1]))
        gl.store(out + places, total, mask=kept)


@gluon.jit
def _tile_of(n, tiles, WALKS: gl.constexpr):
    """Which of a program's tiles the ``n``-th is: a second walk goes backwards, to meet the latest in L2 first."""
    return n if WALKS == 1 else gl.where(n < tiles, n, 2 * tiles - 1 - n)


@gluon.jit
def _past_keys(
    keys, values, queries, grads, sum_k, sum_v, nothing, moved, full, read, parity, scale,
    ACTIVATION: gl.constexpr, SCALED: gl.constexpr, NEEDS_Q: gl.constexpr,
):  # fmt: skip
    """A tile of queries past a block of keys: its sums go on; changes for dq go to ``moved``, once it was ``read``."""
    DIM: gl.constexpr = queries.shape[1]
    layout: gl.constexpr = of_product(DIM)
    left: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    k_rows, v_rows = keys.reshape([_TILE, DIM]), values.reshape([_TILE, DIM])
    scores = warpgroup_mma(k_rows, queries.permute([1, 0]), nothing, use_acc=False, is_async=True)
    change = warpgroup_mma(v_rows, grads.permute([1, 0]), nothing, use_acc=False, is_async=True)
    scores, change = warpgroup_mma_wait(0, [scores, change])
    if SCALED:
        scores = scores * scale
    weights, change = weights_and_changes(scores, change, ACTIVATION, queries.dtype)
    sum_v = warpgroup_mma(gl.convert_layout(weights, left), grads, sum_v, is_async=True)
    sum_k = warpgroup_mma(gl.convert_layout(change, left), queries, sum_k, is_async=True)
    if NEEDS_Q:  # while both products are in flight
        mbarrier.wait(read, parity ^ 1)
        moved.store(change)
        fence_async_shared()
        mbarrier.arrive(full, count=1)
    return warpgroup_mma_wait(0, [sum_k, sum_v])


@gluon.jit
def _move(
    dq, keys, grads, moved, full, read, staged, parity, slot, none, scale, stride, count, more, ADDS: gl.constexpr
):
    """dq of one tile, of what lies in one slot of ``moved``; added to what is there if ``more``, else grads if ADDS."""
    BLOCKS: gl.constexpr = keys.shape[0]
    DIM: gl.constexpr = keys.shape[3]
    layout: gl.constexpr = of_product(DIM)
    if more:
        fetch_part(dq, staged, stride, count)
    mbarrier.wait(full.index(slot), parity)
    total = gl.zeros([_TILE, DIM], gl.float32, layout)
    for block in gl.static_range(BLOCKS):
        changes, k_rows = moved.index(slot * BLOCKS + block).permute([1, 0]), keys.index(block + none)
        total = warpgroup_mma(changes, k_rows.reshape([_TILE, DIM]), total, use_acc=block > 0, is_async=True)
    total = warpgroup_mma_wait(0, [total]) * scale
    mbarrier.arrive(read.index(slot), count=1)
    if more:
        total += staged.load(layout).to(gl.float32)
    elif ADDS:
        total += grads.load(layout).to(gl.float32)
    staged.store(total.to(staged.dtype))
    store_part(dq, staged, stride, count)


@gluon.jit
def _hold(
    dq, dk, dv, queries, grads, keys, values, moved, staged, ready, free, arrived, emptied, full, read, cleared,
    scale, num_keys, to_rows, to_share, left, step, tiles, DENSE_ROW: gl.constexpr, SUMS_ROW: gl.constexpr,
    ACTIVATION: gl.constexpr, SCALED: gl.constexpr, NEEDS_Q: gl.constexpr, ADDS: gl.constexpr, WALKS: gl.constexpr,
    GROUP: gl.constexpr,
):  # fmt: skip
    """One of two warpgroups: its half of the blocks of keys, and dq of every second tile.

    Of the row, ``left`` queries are there from the first tile on; a tile is ``step`` queries after the one before.
    """
    STAGES: gl.constexpr = queries.shape[0]
    BLOCKS: gl.constexpr = keys.shape[0]
    DIM: gl.constexpr = keys.shape[3]
    FIRST: gl.constexpr = GROUP * (BLOCKS // 2)
    scores_layout: gl.constexpr = of_product(_TILE)
    layout: gl.constexpr = of_product(DIM)
    nothing = gl.zeros([_TILE, _TILE], gl.float32, scores_layout)
    for walk in range(WALKS):
        sum_k = gl.zeros([_TILE, DIM], gl.float32, layout)
        sum_v = gl.zeros([_TILE, DIM], gl.float32, layout)
        if BLOCKS == 4:
            more_k = gl.zeros([_TILE, DIM], gl.float32, layout)
            more_v = gl.zeros([_TILE, DIM], gl.float32, layout)
        end = (walk + 1) * tiles
        for n in range(walk * tiles, end + (1 if NEEDS_Q else 0)):
            none = (n + num_keys) >> 30
            if n < end:
                slot, half = n % STAGES, n & 1
                mbarrier.wait(ready.index(slot), (n // STAGES) & 1)
                count = left - _tile_of(n, tiles, WALKS) * step
                if count < _TILE:
                    clear_from((queries if GROUP == 0 else grads).index(slot), count)
                    fence_async_shared()
                    mbarrier.arrive(cleared, count=1)
                    mbarrier.wait(cleared, walk & 1)
                if n == walk * tiles:
                    for block in gl.static_range(BLOCKS):
                        mbarrier.wait(arrived.index(block), walk & 1)
                at = half * BLOCKS + FIRST if NEEDS_Q else none
                sum_k, sum_v = _past_keys(
                    keys.index(FIRST + none), values.index(FIRST + none), queries.index(slot), grads.index(slot),
                    sum_k, sum_v, nothing, moved.index(at), full.index(half), read.index(half), (n >> 1) & 1, scale,
                    ACTIVATION, SCALED, NEEDS_Q,
                )  # fmt: skip
                if BLOCKS == 4:
                    second = FIRST + 1 + none
                    more_k, more_v = _past_keys(
                        keys.index(second), values.index(second), queries.index(slot), grads.index(slot), more_k,
                        more_v, nothing, moved.index(at + 1), full.index(half), read.index(half), (n >> 1) & 1, scale,
                        ACTIVATION, SCALED, NEEDS_Q,
                    )  # fmt: skip
                if not ADDS or half != GROUP:
                    mbarrier.arrive(free.index(slot), count=1)
            if NEEDS_Q and (n > walk * tiles) & ((n - 1) & 1 == GROUP):
                at = _tile_of(n - 1, tiles, WALKS) * step
                _move(
                    dq + to_rows + at * DENSE_ROW, keys, grads.index((n - 1) % STAGES), moved, full, read,
                    staged.index(GROUP + none), ((n - 1) >> 1) & 1, GROUP + none, none, scale, DENSE_ROW + none * 16,
                    left - at, WALKS > 1 and walk > 0, ADDS,
                )  # fmt: skip
                if ADDS:
                    mbarrier.arrive(free.index((n - 1) % STAGES), count=1)
        first_key = (walk * BLOCKS + FIRST) * _TILE
        own = staged.index(GROUP + ((walk + num_keys) >> 30))
        at, count = to_share + first_key * SUMS_ROW, num_keys - first_key
        _write(dv + at, SUMS_ROW, count, sum_v, own)
        _write(dk + at, SUMS_ROW, count, sum_k * scale, own)
        if BLOCKS == 4:
            at += _TILE * SUMS_ROW
            _write(dv + at, SUMS_ROW, count - _TILE, more_v, own)
            _write(dk + at, SUMS_ROW, count - _TILE, more_k * scale, own)
        if WALKS > 1:
            mbarrier.arrive(emptied, count=1)


@gluon.jit
def _begin_tile(
    n, q_tiles, grad_tiles, queries, grads, ready, start, step, q_column, g_column, tiles, WALKS: gl.constexpr
):
    """Begin to load the ``n``-th tile, if there is one."""
    slot = n % queries.shape[0]
    row, wanted = start + _tile_of(n, tiles, WALKS) * step, n < WALKS * tiles
    begin_load(queries.index(slot), ready.index(slot), q_tiles, [row, q_column], wanted)
    begin_load(grads.index(slot), ready.index(slot), grad_tiles, [row, g_column], wanted)


@gluon.jit
def _bring(
    q_tiles, k_blocks, v_blocks, grad_tiles, queries, grads, keys, values, ready, free, arrived, emptied,
    row, first_key, start, step, q_column, k_column, v_column, g_column, tiles, WALKS: gl.constexpr,
):  # fmt: skip
    """The warp that has TMA bring a walk's keys, when the walk before is over, and tiles into free slots."""
    STAGES: gl.constexpr = queries.shape[0]
    BLOCKS: gl.constexpr = keys.shape[0]
    _begin_tile(0, q_tiles, grad_tiles, queries, grads, ready, start, step, q_column, g_column, tiles, WALKS)
    for walk in range(WALKS):
        if walk > 0:
            mbarrier.wait(emptied, (walk - 1) & 1)
        for number in gl.static_range(BLOCKS):
            block = number % 2 * (BLOCKS // 2) + number // 2  # one of each warpgroup's in turns
            key = first_key + (walk * BLOCKS + block) * _TILE
            begin_load(keys.index(block), arrived.index(block), k_blocks, [row, key, k_column], tiles > 0)
            begin_load(values.index(block), arrived.index(block), v_blocks, [row, key, v_column], tiles > 0)
        if walk == 0:
            for ahead in gl.static_range(1, STAGES):
                _begin_tile(
                    ahead, q_tiles, grad_tiles, queries, grads, ready, start, step, q_column, g_column, tiles, WALKS
                )
        for n in range(walk * tiles, (walk + 1) * tiles):
            if n + STAGES < WALKS * tiles:
                mbarrier.wait(free.index(n % STAGES), (n // STAGES) & 1)
                _begin_tile(
                    n + STAGES, q_tiles, grad_tiles, queries, grads, ready, start, step, q_column, g_column, tiles,
                    WALKS,
                )  # fmt: skip


@gluon.jit
def gdpa_bwd_sm90_kernel(
    grad_tiles, q_tiles, k_blocks, v_blocks, offsets, dq, dk, dv, scale, num_keys, first_head, num_heads, splits,
    share_stride, dk_row,
    G_HEAD: gl.constexpr, Q_HEAD: gl.constexpr, K_HEAD: gl.constexpr, V_HEAD: gl.constexpr,
    DENSE_ROW: gl.constexpr, SUMS_ROW: gl.constexpr,
    ACTIVATION: gl.constexpr, SCALED: gl.constexpr, NEEDS_Q: gl.constexpr, ADDS: gl.constexpr, DIM: gl.constexpr,
    BLOCKS: gl.constexpr, WALKS: gl.constexpr, PARTS: gl.constexpr, STAGES: gl.constexpr, REGISTERS: gl.constexpr,
    REST: gl.constexpr,
):  # fmt: skip
    """One row and head, one of ``splits`` shares of its queries, and one of PARTS of its keys: WALKS times BLOCKS."""
    dtype: gl.constexpr = q_tiles.dtype
    tile_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM], dtype)
    keys_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, _TILE, DIM], dtype)
    moved_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, _TILE], dtype)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    first_key, program = gl.program_id(0) % PARTS * (BLOCKS * _TILE), gl.program_id(0) // PARTS
    share, program = program % splits, program // splits
    row, head = program // num_heads, first_head + program % num_heads
    start = gl.load(offsets + row).to(gl.int64)
    left = (gl.load(offsets + row + 1) - start).to(gl.int32) - share * _TILE
    start += share * _TILE
    step = splits * _TILE
    tiles = gl.maximum(gl.cdiv(left, step), 0)
    to_rows = start * DENSE_ROW + head * DIM
    to_share = share.to(gl.int64) * share_stride + row.to(gl.int64) * dk_row + head * DIM + first_key * SUMS_ROW
    if not SCALED:
        scale = 1.0  # a constant, and no instruction

    keys = gl.allocate_shared_memory(dtype, [BLOCKS, 1, _TILE, DIM], keys_layout)
    values = gl.allocate_shared_memory(dtype, [BLOCKS, 1, _TILE, DIM], keys_layout)
    queries = gl.allocate_shared_memory(dtype, [STAGES, _TILE, DIM], tile_layout)
    grads = gl.allocate_shared_memory(dtype, [STAGES, _TILE, DIM], tile_layout)
    moved = gl.allocate_shared_memory(dtype, [2 * BLOCKS if NEEDS_Q else 2, _TILE, _TILE], moved_layout)
    staged = gl.allocate_shared_memory(dtype, [2, _TILE, DIM], tile_layout)
    arrived = gl.allocate_shared_memory(gl.int64, [BLOCKS, 1], barrier)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    full = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    read = gl.allocate_shared_memory(gl.int64, [2, 1], barrier)
    emptied = gl.allocate_shared_memory(gl.int64, [1], barrier)
    cleared = gl.allocate_shared_memory(gl.int64, [1], barrier)
    for block in gl.static_range(BLOCKS):
        mbarrier.init(arrived.index(block), count=2)  # keys and values
    for slot in gl.static_range(STAGES):
        mbarrier.init(ready.index(slot), count=2)  # queries and their gradients
        mbarrier.init(free.index(slot), count=2)
    for half in gl.static_range(2):
        mbarrier.init(full.index(half), count=BLOCKS)
        mbarrier.init(read.index(half), count=1)
    mbarrier.init(emptied, count=2)
    mbarrier.init(cleared, count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_hold, (
                dq, dk, dv, queries, grads, keys, values, moved, staged, ready, free, arrived, emptied, full, read,
                cleared, scale, num_keys - first_key, to_rows, to_share, left, step, tiles, DENSE_ROW, SUMS_ROW,
                ACTIVATION, SCALED, NEEDS_Q, ADDS, WALKS, 0,
            )),
            (_hold, (
                dq, dk, dv, queries, grads, keys, values, moved, staged, ready, free, arrived, emptied, full, read,
                cleared, scale, num_keys - first_key, to_rows, to_share, left, step, tiles, DENSE_ROW, SUMS_ROW,
                ACTIVATION, SCALED, NEEDS_Q, ADDS, WALKS, 1,
            )),
            (_bring, (
                q_tiles, k_blocks, v_blocks, grad_tiles, queries, grads, keys, values, ready, free, arrived, emptied,
                row, first_key, start.to(gl.int32), step,
                head * Q_HEAD, head * K_HEAD, head * V_HEAD, head * G_HEAD, tiles, WALKS,
            )),
        ],
        [4, 1], [REGISTERS, REST],
    )  # fmt: skip


def fits(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, needs: Sequence[bool]) -> bool:
    """Whether this kernel takes these tensors, of unit last stride, as they lie, and makes what is needed of them."""
    return needs[1] and needs[2] and all(kernel_sm90.fits(x, k, v) for x in (q, grad))


def arguments(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    scale: float, num_keys: int, first_head: int, num_heads: int, splits: int, share_stride: int,
    grad_head: int, q_head: int, k_strides: Any, v_strides: Any, dk_row: int, **constants: Any,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:  # fmt: skip
    """What `gdpa_bwd_sm90_kernel` takes, of what `gdpa_bwd_kernel` takes."""
    tiles = (blocks_of(x, TILE) for x in (grad, q, k, v))
    turns = constants["ALL_KEYS"] // constants["KEYS"]
    wanted = ("DENSE_ROW", "SUMS_ROW", "ACTIVATION", "SCALED", "NEEDS_Q", "ADDS", "DIM", "REGISTERS")
    stages = max(constants["STAGES"], 3) if constants["ADDS"] and constants["NEEDS_Q"] else constants["STAGES"]
    return (*tiles, offsets, dq, dk, dv, scale, num_keys, first_head, num_heads, splits, share_stride, dk_row), {
        **{name: constants[name] for name in wanted},
        "G_HEAD": grad_head, "Q_HEAD": q_head, "K_HEAD": k_strides[1], "V_HEAD": v_strides[1],
        "STAGES": stages, "BLOCKS": constants["KEYS"] // TILE, "WALKS": turns if constants["NEEDS_Q"] else 1,
        "PARTS": 1 if constants["NEEDS_Q"] else turns,
        "REST": POOL - 2 * constants["REGISTERS"], "maxnreg": POOL // 3,
    }  # fmt: skip
