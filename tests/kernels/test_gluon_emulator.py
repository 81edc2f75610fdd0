"""The emulator of Gluon finds what a GPU would answer with wrong numbers, a hang or an illegal access."""

import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tests.kernels.gluon import Emulated, Fault

_load_tile = getattr(tma, "async_load", tma.async_copy_global_to_shared)
_store_tile = getattr(tma, "async_store", tma.async_copy_shared_to_global)
FAULTS = {
    "unwaited load": "read while a copy is on its way",
    "phase that is over": "read while a copy is on its way",
    "no arrival": "deadlock",
    "unwaited product": "of a product in flight",
    "overwritten operand": "overwritten while an engine reads",
    "no fence": "without a fence",
    "overwritten store": "overwritten while an engine reads",
    "left in flight": "in flight",
    "out of bounds": "address",
    "two writers": "two programs write the same place",
    "short of bytes": "more bytes landed",
    "uninitialised": "read before anything was written",
    "unsynchronised reader": "race: read|read before anything was written|race: overwrote",
    "unsynchronised writer": "race: overwrote",
}


@gluon.jit
def _read(tile, staged, full, free, out, FAULT: gl.constexpr):
    """What the writer passes on, twice, to memory."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    rows = gl.arange(0, 64, gl.SliceLayout(1, layout))[:, None] * 64
    places = rows + gl.arange(0, 64, gl.SliceLayout(0, layout))[None, :]
    for turn in range(2):
        if FAULT != "unsynchronised reader":
            mbarrier.wait(full, turn)
        gl.store(out + (turn * 4096 + (1 if FAULT == "out of bounds" else 0) + places), staged.load(layout))
        if FAULT != "no arrival":
            mbarrier.arrive(free)


@gluon.jit
def _square(tiles, out_tiles, tile, staged, full, free, arrived, FAULT: gl.constexpr):
    """The tile's square, by the tensor cores, passed on by TMA and to a reader, twice."""
    DIM: gl.constexpr = tile.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    if FAULT == "uninitialised":
        tile.load(layout)
    for turn in range(2):
        mbarrier.expect(arrived, tile.numel * (1 if FAULT == "short of bytes" else 2))
        _load_tile(tiles, [turn * 64, 0], arrived, tile)
        if FAULT != "unwaited load":
            mbarrier.wait(arrived, turn + (1 if FAULT == "phase that is over" else 0))
        product = warpgroup_mma(tile, tile, gl.zeros([64, DIM], gl.float32, layout), use_acc=False, is_async=True)
        if FAULT == "overwritten operand":
            tile.store(gl.zeros([64, DIM], gl.bfloat16, layout))
        if FAULT != "unwaited product":
            product = warpgroup_mma_wait(0, [product])
        if turn > 0 and FAULT != "unsynchronised writer":
            mbarrier.wait(free, turn - 1)
        staged.store(product.to(gl.bfloat16))
        if FAULT != "no fence":
            fence_async_shared()
        mbarrier.arrive(full)
        _store_tile(out_tiles, [turn * 64, 0], staged)
        if FAULT != "overwritten store" and (FAULT != "left in flight" or turn == 0):
            tma.store_wait(0)


@gluon.jit
def pipeline_kernel(tiles, out_tiles, out, FAULT: gl.constexpr):
    """One warpgroup computes, the other one copies what it passes on."""
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, 64], gl.bfloat16)
    tile = gl.allocate_shared_memory(gl.bfloat16, [64, 64], layout)
    staged = gl.allocate_shared_memory(gl.bfloat16, [64, 64], layout)
    barriers = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    full, free, arrived = barriers.index(0), barriers.index(1), barriers.index(2)
    for one in gl.static_range(3):
        mbarrier.init(barriers.index(one), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_square, (tiles, out_tiles, tile, staged, full, free, arrived, FAULT)),
            (_read, (tile, staged, full, free, out, FAULT)),
        ],
        [4],
        [128],
    )


def run(fault: str, seed: int) -> None:
    """Launch the pipeline, and hold what it wrote against torch."""
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    by_tma, by_threads = torch.empty_like(x), torch.empty_like(x)
    layout = gl.NVMMASharedLayout.get_default_for([64, 64], gl.bfloat16)
    tiles, out_tiles = (TensorDescriptor(t, [128, 64], [64, 1], [64, 64], layout) for t in (x, by_tma))
    Emulated(pipeline_kernel, seed)[(2 if fault == "two writers" else 1,)](
        tiles, out_tiles, by_threads, FAULT=fault, num_warps=4
    )
    expected = torch.cat([part.float() @ part.float() for part in x.split(64)]).to(torch.bfloat16)
    assert torch.equal(by_tma, expected) and torch.equal(by_threads, expected)


def test_a_right_kernel_computes_what_it_should_in_any_order() -> None:
    for seed in range(20):
        run("", seed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str) -> None:
    for seed in range(20):
        with pytest.raises(Fault, match=FAULTS[fault]):
            run(fault, seed)


@gluon.jit
def _unknown_kernel(out):
    gl.histogram(gl.full([64], 1, gl.int32, gl.BlockedLayout([1], [32], [4], [0])), 2)


def test_what_the_emulator_lacks_of_gluon_is_named() -> None:
    with pytest.raises(AttributeError, match="does not know histogram; add it to"):
        Emulated(_unknown_kernel)[(1,)](torch.empty(1), num_warps=4)
