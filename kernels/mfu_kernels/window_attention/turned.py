"""Gradients that a warpgroup writes from its registers, turned back by the rotation of queries and keys; in Gluon."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mfu_kernels.hopper import TILE

_TILE = gl.constexpr(TILE)


@gluon.jit
def _store_columns(x, tile, count, ROW: gl.constexpr):
    """Write the first ``count`` rows of a tile to ``x``, 16 bytes a thread."""
    WIDTH: gl.constexpr = tile.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // WIDTH, WIDTH // 8], [4, 1], [1, 0])
    n = gl.arange(0, _TILE, gl.SliceLayout(1, layout)) + (count >> 30)  # so that addresses are not held for all loops
    d = gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    kept = (n < count)[:, None] & (d >= 0)[None, :]
    gl.store(x + (n[:, None] * ROW + d[None, :]), gl.convert_layout(tile.to(x.dtype.element_ty), layout), mask=kept)


@gluon.jit
def _halves(x):
    """The two halves of a tile's columns, as a rotation pairs them."""
    return x.reshape([_TILE, 2, x.shape[1] // 2]).permute([0, 2, 1]).split()


@gluon.jit
def turns_of(turns, like, token, count):
    """A cosine and a sine for each pair of columns of ``count`` rows; without ``turns``, nothing in particular."""
    half, _ = _halves(like)
    if turns is None:
        return half, half
    else:
        HALF: gl.constexpr = half.shape[1]
        layout: gl.constexpr = half.type.layout
        n = gl.arange(0, _TILE, gl.SliceLayout(1, layout)) + (count >> 30)
        d = gl.arange(0, HALF, gl.SliceLayout(0, layout))
        places = turns + token * (2 * HALF) + (n[:, None] * (2 * HALF) + d[None, :])
        kept = (n < count)[:, None] & (d >= 0)[None, :]
        return gl.load(places, mask=kept, other=0.0), gl.load(places + HALF, mask=kept, other=0.0)


@gluon.jit
def store_turned(x, change, cos, sin, token, head, count, TURNED: gl.constexpr, ROW: gl.constexpr):
    """Write ``count`` rows of a gradient to ``x`` from ``token`` on, perhaps turned."""
    x += token * ROW + head * change.shape[1]
    first, second = _halves(change)
    if TURNED:
        cos, sin = cos.to(gl.float32), sin.to(gl.float32)
        first, second = first * cos - second * sin, first * sin + second * cos
    _store_columns(x, first, count, ROW)
    _store_columns(x + first.shape[1], second, count, ROW)
