"""GDPA's forward for Hopper, in Gluon: warpgroups that multiply and activate past each other.

A multiprocessor's tensor cores and its other units work at the same time only where one warpgroup activates scores
while another one multiplies. In Triton all warps of a program meet at barriers, and so do the same at the same time.
Here a program's warpgroups share the keys and values of one row and head, in shared memory, and nothing else: each
takes every GROUPS-th tile of 64 queries, with barriers of its own, and they fall out of step by themselves.

TMA brings keys and values, in the order in which they are waited for, block by block; it brings a warpgroup its next
tile of queries while it works on one, and takes its results away. Stores from registers would hold up the warps; only
a row's last tile, where it is not full, is stored by them, with a mask.

Queries beyond the end of a row are those of the next, and not stored. Keys and values beyond num_keys are zeros;
act(0) = 0 makes their weights zero.
"""

from collections.abc import Mapping
from typing import Any

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

from mfu_kernels.activations_device import weights_of
from mfu_kernels.hopper import TILE, begin_load, blocks_of, lies_for_tma, of_product, store_part, tma_store

_TILE = gl.constexpr(TILE)


@gluon.jit
def _stream(
    q_tiles, k_blocks, v_blocks, out_tiles, out, queries, staged, keys, values, arrived, ready,
    scale, length, row, start, head, first, step,
    Q_HEAD: gl.constexpr, K_HEAD: gl.constexpr, V_HEAD: gl.constexpr, OUT_ROW: gl.constexpr,
    ACTIVATION: gl.constexpr, SCALED: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """One warpgroup: its tiles go past all blocks of keys and values, which the first group has brought.

    ``arrived``: barriers of the blocks, keys and values in turns. ``ready``: those of two slots of ``queries``.
    """
    BLOCKS: gl.constexpr = keys.shape[0]
    KEYS: gl.constexpr = keys.shape[2]
    DIM: gl.constexpr = keys.shape[3]
    scores_layout: gl.constexpr = of_product(KEYS)
    out_layout: gl.constexpr = of_product(DIM)
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    no_scores = gl.zeros([_TILE, KEYS], gl.float32, scores_layout)
    nothing = gl.zeros([_TILE, DIM], gl.float32, out_layout)

    for ahead in gl.static_range(2):
        at = first + ahead * step
        begin_load(queries.index(ahead), ready.index(ahead), q_tiles, [start + at, head * Q_HEAD], at < length)
    if GROUP == 0:
        for block in gl.static_range(BLOCKS):
            k_place, v_place = [row, block * KEYS, head * K_HEAD], [row, block * KEYS, head * V_HEAD]
            begin_load(keys.index(block), arrived.index(2 * block), k_blocks, k_place, first < length)
            begin_load(values.index(block), arrived.index(2 * block + 1), v_blocks, v_place, first < length)

    at, count = first, 0
    while at < length:
        slot = count & 1
        none = count >> 30  # so that addresses are made where they are used: held for the whole loop, they spill
        mbarrier.wait(ready.index(slot), (count >> 1) & 1)
        for block in gl.static_range(BLOCKS):
            if count == 0:
                mbarrier.wait(arrived.index(2 * block), 0)
            k_columns = keys.index(block + none).reshape([KEYS, DIM]).permute([1, 0])
            scores = warpgroup_mma(queries.index(slot), k_columns, no_scores, use_acc=False, is_async=True)
            if block == 0:
                scores = warpgroup_mma_wait(0, [scores])
                total = nothing
            else:  # the values' product before was in flight meanwhile
                scores, total = warpgroup_mma_wait(0, [scores, total])
            if SCALED:
                scores = scores * scale
            weights = gl.convert_layout(weights_of(scores, ACTIVATION, keys.dtype), weights_layout)
            if count == 0:
                mbarrier.wait(arrived.index(2 * block + 1), 0)
            v_rows = values.index(block + none).reshape([KEYS, DIM])
            total = warpgroup_mma(weights, v_rows, total, use_acc=block > 0, is_async=True)
        total = warpgroup_mma_wait(0, [total])
        tma.store_wait(0)  # what was staged before is read
        staged.store(total.to(keys.dtype))
        fence_async_shared()
        if at + _TILE <= length:
            tma_store(out_tiles, [start + at, head * DIM], staged)
        after_next = at + 2 * step
        place = [start + after_next, head * Q_HEAD]
        begin_load(queries.index(slot), ready.index(slot), q_tiles, place, after_next < length)
        at += step
        count += 1
    last = at - step
    if (last >= first) & (last + _TILE > length):
        store_part(out + gl.to_tensor(last).to(gl.int64) * OUT_ROW, staged, OUT_ROW, length - last)
    tma.store_wait(0)


@gluon.jit
def gdpa_fwd_sm90_kernel(
    q_tiles, k_blocks, v_blocks, offsets, out_tiles, out, scale, first_head, num_heads, splits,
    Q_HEAD: gl.constexpr, K_HEAD: gl.constexpr, V_HEAD: gl.constexpr, OUT_ROW: gl.constexpr,
    ACTIVATION: gl.constexpr, SCALED: gl.constexpr, DIM: gl.constexpr,
    KEYS: gl.constexpr, HALVES: gl.constexpr, GROUPS: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """One row and head, or one of ``splits`` shares of its queries, against HALVES blocks of KEYS keys."""
    dtype: gl.constexpr = q_tiles.dtype
    tile_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([_TILE, DIM], dtype)
    keys_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([1, KEYS, DIM], dtype)
    share, program = gl.program_id(0) % splits, gl.program_id(0) // splits
    row, head = program // num_heads, first_head + program % num_heads
    start = gl.load(offsets + row).to(gl.int64)
    length = (gl.load(offsets + row + 1) - start).to(gl.int32)
    out += start * OUT_ROW + head * DIM
    first, step = share * GROUPS * _TILE, splits * GROUPS * _TILE

    keys = gl.allocate_shared_memory(dtype, [HALVES, 1, KEYS, DIM], keys_layout)
    values = gl.allocate_shared_memory(dtype, [HALVES, 1, KEYS, DIM], keys_layout)
    arrived = gl.allocate_shared_memory(gl.int64, [2 * HALVES, 1], mbarrier.MBarrierLayout())
    for block in gl.static_range(2 * HALVES):
        mbarrier.init(arrived.index(block), count=1)
    queries = gl.allocate_shared_memory(dtype, [2, _TILE, DIM], tile_layout)
    staged = gl.allocate_shared_memory(dtype, [_TILE, DIM], tile_layout)
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(2):
        mbarrier.init(ready.index(slot), count=1)
    if GROUPS == 1:
        fence_async_shared()
        _stream(
            q_tiles, k_blocks, v_blocks, out_tiles, out, queries, staged, keys, values, arrived, ready,
            scale, length, row, start.to(gl.int32), head, first, step, Q_HEAD,
            K_HEAD, V_HEAD, OUT_ROW, ACTIVATION, SCALED, 0,
        )  # fmt: skip
    else:
        others = gl.allocate_shared_memory(dtype, [2, _TILE, DIM], tile_layout)
        staged_too = gl.allocate_shared_memory(dtype, [_TILE, DIM], tile_layout)
        ready_too = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
        for slot in gl.static_range(2):
            mbarrier.init(ready_too.index(slot), count=1)
        fence_async_shared()
        gl.warp_specialize(
            [
                (_stream, (
                    q_tiles, k_blocks, v_blocks, out_tiles, out, queries, staged, keys, values, arrived, ready,
                    scale, length, row, start.to(gl.int32), head, first, step, Q_HEAD,
                    K_HEAD, V_HEAD, OUT_ROW, ACTIVATION, SCALED, 0,
                )),
                (_stream, (
                    q_tiles, k_blocks, v_blocks, out_tiles, out, others, staged_too, keys, values, arrived, ready_too,
                    scale, length, row, start.to(gl.int32), head, first + _TILE, step, Q_HEAD,
                    K_HEAD, V_HEAD, OUT_ROW, ACTIVATION, SCALED, 1,
                )),
            ],
            [4], [REGISTERS],
        )  # fmt: skip


def fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether this kernel takes these tensors, of unit last stride, as they lie.

    With up to 64 keys there is nothing to gain: memory is the limit, and `gdpa_fwd_kernel` comes near it.
    """
    return (
        q.element_size() == 2
        and q.shape[2] in (64, 128)
        and 64 < k.shape[1] <= 256
        and q.shape[0] < 2**31
        and all(lies_for_tma(x) for x in (q, k, v))
    )


def arguments(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, out: Tensor, scale: float, num_keys: int, first_head: int,
    num_heads: int, max_length: int, splits: int, q_head: int, k_strides: Any, v_strides: Any, **constants: Any,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:  # fmt: skip
    """What `gdpa_fwd_sm90_kernel` takes, of what `gdpa_fwd_kernel` takes."""
    size = constants["KEYS"]
    tiles = blocks_of(q, TILE), blocks_of(k, size), blocks_of(v, size), offsets, blocks_of(out, TILE)
    wanted = ("OUT_ROW", "ACTIVATION", "SCALED", "DIM", "KEYS", "HALVES", "GROUPS", "REGISTERS")
    heads = {"Q_HEAD": q_head, "K_HEAD": k_strides[1], "V_HEAD": v_strides[1]}
    return (*tiles, out, scale, first_head, num_heads, splits), {
        **{name: constants[name] for name in wanted}, **heads, "maxnreg": constants["REGISTERS"],
    }  # fmt: skip
