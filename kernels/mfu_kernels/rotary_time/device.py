"""Rotation of feature pairs inside other ops' kernels, on tiles of keys [N, D].

A head's two halves are padded each on its own, to D / 2 columns: so they are two tiles, whose pairs lie side by side
in a thread, and laying them together again moves nothing.
"""

import triton
import triton.language as tl

from mfu_kernels.activations_device import _INTERPRETED, _one_instruction

_TURNS = tl.constexpr(0.15915494309189535)  # of one radian
# A turn in radians, its first part short enough for an exact product with any number of turns below 2^15.
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it loses its fraction
_TURN_HIGH, _TURN_LOW = tl.constexpr(6.28125), tl.constexpr(0.0019353071795864769)


@triton.jit
def columns_of(WIDTH: tl.constexpr, D: tl.constexpr, HALVES: tl.constexpr):
    """Which of a head's WIDTH columns each of D places holds, and whether it holds one; ``HALVES``: padded each."""
    places = tl.arange(0, D)
    if HALVES and WIDTH < D:
        return places % (D // 2) + places // (D // 2) * (WIDTH // 2), places % (D // 2) < WIDTH // 2
    else:
        return places, places < WIDTH


@triton.jit
def sin_cos(angles, FAST: tl.constexpr):
    """Sine and cosine of fp32 radians. ``FAST``: for results that are rounded to 16 bits, good to 2^-20.

    The hardware's own instructions are good near 0 only, so whole turns are taken away first.
    """
    if FAST and not _INTERPRETED:
        turns = (angles * _TURNS + _ROUNDER) - _ROUNDER
        rest = angles - turns * _TURN_HIGH - turns * _TURN_LOW
        return _one_instruction("sin.approx.ftz.f32", rest), _one_instruction("cos.approx.ftz.f32", rest)
    else:
        return tl.sin(angles), tl.cos(angles)


@triton.jit
def turned_pairs(first, second, angles, DTYPE: tl.constexpr):
    """The halves ``first`` and ``second`` [N, D / 2], fp32, each pair turned by its angle and rounded."""
    sin, cos = sin_cos(angles, DTYPE.primitive_bitwidth < 32)
    return (first * cos - second * sin).to(DTYPE), (first * sin + second * cos).to(DTYPE)


@triton.jit
def turned_back(x, angles, FAST: tl.constexpr):
    """Tile ``x`` [N, D], each pair turned the other way."""
    first, second = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))
    sin, cos = sin_cos(angles, FAST)
    return together(first * cos + second * sin, second * cos - first * sin)


@triton.jit
def together(first, second):
    """Tile [N, D] of its halves."""
    pairs = tl.permute(tl.join(first, second), (0, 2, 1))
    return tl.reshape(pairs, (first.shape[0], 2 * first.shape[1]))
