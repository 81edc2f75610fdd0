"""Rotation of queries and keys inside the attention kernels.

A head's d columns are held as two tiles, the pairs' first and second parts, so that a rotation mixes tiles element by
element and never moves a column. Cosines and sines are made once a call, by a kernel of its own: a key is rotated in
every program that sees it, and sine and cosine cost more there than the four products of a rotation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, config
from mfu_kernels.modes import MetaParameters
from mfu_kernels.tiles import load_tile, store_tile, tile_of


@triton.jit
def turns_kernel(angles, turns, num_angles, stride, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """turns [T, 2, HALF] = cosine and sine of ``angles`` [T, HALF]."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_angles
    token, column = index // HALF, index % HALF
    angle = tl.load(angles + token * stride + column, mask=inside, other=0.0).to(tl.float32)
    place = turns + token * (2 * HALF) + column
    tl.store(place, tl.cos(angle).to(turns.dtype.element_ty), mask=inside)
    tl.store(place + HALF, tl.sin(angle).to(turns.dtype.element_ty), mask=inside)


@triton.jit
def load_turns(turns, rows, num_rows, HALF: tl.constexpr, PADDED: tl.constexpr, AGAIN: tl.constexpr):
    """Cosine and sine of each row's angles, fp32 [rows, PADDED].

    AGAIN, for a program that loaded them before its loop: with another policy of eviction, the compiler loads them
    again in place of keeping their registers throughout the loop.
    """
    policy: tl.constexpr = "evict_first" if AGAIN else ""
    places, inside = tile_of(rows, num_rows, 2 * HALF, HALF, PADDED)
    cos = tl.load(turns + places, mask=inside, other=0.0, eviction_policy=policy)
    sin = tl.load(turns + HALF + places, mask=inside, other=0.0, eviction_policy=policy)
    return cos.to(tl.float32), sin.to(tl.float32)


@triton.jit
def load_rotated(x, turns, rows, num_rows, stride, D: tl.constexpr, PADDED: tl.constexpr, ROTATED: tl.constexpr):
    """Tile [rows, PADDED] of queries or keys ``x``; if ROTATED, each half padded by itself."""
    if ROTATED:
        first = load_tile(x, rows, num_rows, stride, D // 2, PADDED // 2)
        second = load_tile(x + D // 2, rows, num_rows, stride, D // 2, PADDED // 2)
        cos, sin = load_turns(turns, rows, num_rows, D // 2, PADDED // 2, False)
        a, b = first.to(tl.float32), second.to(tl.float32)
        halves = tl.join((a * cos - b * sin).to(x.dtype.element_ty), (a * sin + b * cos).to(x.dtype.element_ty))
        return tl.reshape(tl.permute(halves, (0, 2, 1)), (rows.shape[0], PADDED))
    else:
        return load_tile(x, rows, num_rows, stride, D, PADDED)


@triton.jit
def store_rotated_back(
    x, tile, turns, rows, num_rows, stride, D: tl.constexpr, PADDED: tl.constexpr, ROTATED: tl.constexpr
):
    """Write the gradient of what `load_rotated` read."""
    if ROTATED:
        cos, sin = load_turns(turns, rows, num_rows, D // 2, PADDED // 2, True)
        halves = tl.permute(tl.reshape(tile, (rows.shape[0], 2, PADDED // 2)), (0, 2, 1))
        first, second = tl.split(halves)
        store_tile(x, first * cos + second * sin, rows, num_rows, stride, D // 2, PADDED // 2)
        store_tile(x + D // 2, second * cos - first * sin, rows, num_rows, stride, D // 2, PADDED // 2)
    else:
        store_tile(x, tile, rows, num_rows, stride, D, PADDED)


def _turns_configs(key: MetaParameters) -> list[triton.Config]:
    return [config(num_warps=4, BLOCK=512)]


TURNS = Kernel(turns_kernel, _turns_configs)


def turns_of(angles: Tensor, dtype: torch.dtype) -> Tensor:
    """Cosine and sine [T, 2, d/2] of ``angles`` [T, d/2], for inputs of ``dtype``.

    fp32, but for bf16 inputs fp16: half the bytes, and what rounding to it loses is an eighth of what bf16 does.
    """
    num_tokens, half = angles.shape
    turns = angles.new_empty(num_tokens, 2, half, dtype=torch.float16 if dtype == torch.bfloat16 else torch.float32)
    angles = angles if angles.stride(1) == 1 else angles.contiguous()
    TURNS.launch(
        lambda c: (triton.cdiv(angles.numel(), c["BLOCK"]),), angles.device,
        angles, turns, angles.numel(), angles.stride(0), key={"half": half}, HALF=half,
    )  # fmt: skip
    return turns
