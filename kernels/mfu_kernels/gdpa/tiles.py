"""Tiles of rows on the device, and what GDPA's launches share on the host."""

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import num_walkers

MIN_BLOCK = 16  # what tl.dot takes
SPLIT_ROWS = 64  # a program that shares a row with others has at least so many queries


@triton.jit
def load_tile(base, rows, stride, limit, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """[len(rows), WIDTH] from ``base``; zeros beyond ``limit`` rows and beyond DIM columns.

    Not that of `mfu_kernels.tiles`, whose addresses are of 64 bits: with them, the backward spills at 128 keys.
    """
    columns = tl.arange(0, WIDTH)
    inside = (rows < limit)[:, None]
    if DIM < WIDTH:
        inside = inside & (columns < DIM)[None, :]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(base, rows, stride, limit, values, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """The counterpart of `load_tile`; rounds to the dtype of ``base``."""
    columns = tl.arange(0, WIDTH)
    inside = (rows < limit)[:, None]
    if DIM < WIDTH:
        inside = inside & (columns < DIM)[None, :]
    tl.store(base + rows[:, None] * stride + columns[None, :], values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def row_of(offsets, row):
    """Where a jagged row starts, int64, and its length, int32."""
    start = tl.load(offsets + row).to(tl.int64)
    return start, (tl.load(offsets + row + 1) - start).to(tl.int32)


def runs_of_heads(activation: list[str]) -> Iterator[tuple[int, int, str]]:
    """First head, number of heads and name of each run of heads with one activation: a launch each."""
    first = 0
    for name, heads in itertools.groupby(activation):
        count = len(list(heads))
        yield first, count, name
        first += count


def key_of(q: Tensor, k: Tensor) -> MetaParameters:
    """What the best config depends on; above 256 keys, their number does not matter."""
    keys = min(max(MIN_BLOCK, next_power_of_2(k.shape[1])), 512)
    return {"d": max(MIN_BLOCK, next_power_of_2(q.shape[2])), "keys": keys, "bytes": q.element_size()}


def num_splits(programs: int, max_length: int, device: torch.device) -> int:
    """Among how many programs a row's queries are shared out, so that few rows fill the device too."""
    return max(1, min(num_walkers(device) // max(1, programs), -(-max_length // SPLIT_ROWS)))
