"""What the kernels in Gluon for Hopper share: tiles that TMA brings and takes away."""

import atexit
import sys
from functools import cache, lru_cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

TILE = 64  # rows of a warpgroup: what its instruction takes
_TILE = gl.constexpr(TILE)

# Triton 3.6 calls them otherwise than its successors.
tma_load = getattr(tma, "async_load", tma.async_copy_global_to_shared)
tma_store = getattr(tma, "async_store", tma.async_copy_shared_to_global)


@gluon.jit
def begin_load(slot, arrived, tiles, place, wanted):
    """Have TMA bring a tile of 16 bits, if it is ``wanted``, and say so by a barrier."""
    if wanted:
        mbarrier.expect(arrived, slot.numel * 2)
        tma_load(tiles, place, arrived, slot)


@gluon.constexpr_function
def in_chunks(width):
    """The layout of a tile [64, width] of 16 bits whose memory a warpgroup's threads take in 16 bytes each."""
    return gl.BlockedLayout([1, 8], [256 // width, width // 8], [4, 1], [1, 0])


@gluon.constexpr_function
def of_product(width):
    """The layout in which a warpgroup's instruction leaves [64, width]."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])


@gluon.jit
def places_of(stride, count, none, WIDTH: gl.constexpr, layout: gl.constexpr):
    """Where a tile [64, WIDTH] lies whose rows are ``stride`` apart, and which of it is in the first ``count`` rows.

    ``none`` is zero: made of what changes in a loop, it keeps addresses from being held for all of the loop.
    """
    rows = gl.arange(0, _TILE, gl.SliceLayout(1, layout)) + none
    columns = gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    kept = (rows < count)[:, None] & (columns >= 0)[None, :]
    return rows[:, None] * stride + columns[None, :], kept


@gluon.jit
def store_rows(out, tile, stride, count, none):
    """The first ``count`` rows of a tile in registers, rounded to what is there; ``none`` as `places_of` has it."""
    layout: gl.constexpr = in_chunks(tile.shape[1])
    places, kept = places_of(stride, count, none, tile.shape[1], layout)
    gl.store(out + places, gl.convert_layout(tile.to(out.dtype.element_ty), layout), mask=kept)


@gluon.jit
def store_part(out, staged, stride, count):
    """The first ``count`` rows of a staged tile."""
    layout: gl.constexpr = in_chunks(staged.shape[1])
    places, kept = places_of(stride, count, 0, staged.shape[1], layout)
    gl.store(out + places, staged.load(layout), mask=kept)


@gluon.jit
def fetch_part(out, staged, stride, count):
    """The counterpart of `store_part`, by the same threads; zeros beyond ``count`` rows."""
    places, kept = places_of(stride, count, 0, staged.shape[1], in_chunks(staged.shape[1]))
    staged.store(gl.load(out + places, mask=kept, other=0.0))


@gluon.jit
def halves_of(x):
    """The two halves of a tile's columns, as a rotation pairs them."""
    return x.reshape([x.shape[0], 2, x.shape[1] // 2]).permute([0, 2, 1]).split()


@gluon.jit
def whole_of(first, second):
    """The tile whose halves they are."""
    return gl.join(first, second).permute([0, 2, 1]).reshape([first.shape[0], 2 * first.shape[1]])


@gluon.jit
def clear_from(tile, count):
    """Zeros from row ``count`` of a tile on: what TMA brought there is another row's, and may be anything."""
    layout: gl.constexpr = of_product(tile.shape[1])
    rows = gl.arange(0, tile.shape[0], gl.SliceLayout(1, layout))
    tile.store(gl.where((rows < count)[:, None], tile.load(layout), 0.0).to(tile.dtype))


def lies_for_tma(x: Tensor) -> bool:
    """Whether `blocks_of` takes [..., H, d] of 16 bits as it lies: TMA wants 16 bytes, and whole rows."""
    return x.data_ptr() % 16 == 0 and _rows_lie(x.stride(), x.shape[-2], x.shape[-1])


@lru_cache(maxsize=1024)
def _rows_lie(strides: tuple[int, ...], num_heads: int, d: int) -> bool:
    """Every launch asks, of the same few."""
    *_, of_row, of_head, last = strides
    whole = last == 1 and of_row >= (num_heads - 1) * of_head + d and strides[0] >= of_row
    return whole and all(step % 8 == 0 for step in strides[:-1])


def blocks_of(x: Tensor, rows: int) -> TensorDescriptor:
    """Blocks of ``rows`` rows of one head of [..., H, d] for TMA, which sees rows that a head is some columns of."""
    *lengths, heads, d = x.shape
    *strides, of_head, _ = x.stride()
    shape = [*(1 for _ in lengths[1:]), rows, d]
    whole = [*lengths, (heads - 1) * of_head + d]
    return TensorDescriptor(x, whole, [*strides, 1], shape, _block_layout(tuple(shape), x.dtype))


@cache
def _block_layout(shape: tuple[int, ...], dtype: torch.dtype) -> gl.NVMMASharedLayout:
    """Every launch asks for some."""
    dtypes = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32}
    return gl.NVMMASharedLayout.get_default_for(list(shape), dtypes[dtype])


@atexit.register
def _let_bindings_go() -> None:
    """Spare whoever compiled Gluon with Triton 3.9 a page about leaks when the process ends, where all is given back.

    The compiler keeps classes of Gluon's language for good, and through their modules' names its bindings' own builder,
    which nanobind then misses. What names it is cleared here, when nothing is compiled any more.
    """
    semantic = sys.modules.get("triton.experimental.gluon.language._semantic")
    if semantic is None:
        return
    vars(semantic).pop("GluonOpBuilder", None)
    for named in (semantic.GluonSemantic, *vars(semantic.GluonSemantic).values()):
        getattr(named, "__annotations__", {}).clear()
