"""The rotation of queries and keys in Gluon: of tiles in shared memory, and back, of gradients in registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mfu_kernels.hopper import halves_of, of_product, places_of, store_rows, whole_of


@gluon.jit
def turns_of(turns, like, token, count):
    """A cosine and a sine for each pair of columns of ``count`` rows; without ``turns``, nothing in particular."""
    half, _ = halves_of(like)
    if turns is None:
        return half, half
    else:
        HALF: gl.constexpr = half.shape[1]
        layout: gl.constexpr = half.type.layout
        places, kept = places_of(2 * HALF, count, count >> 30, HALF, layout)
        places = turns + token * (2 * HALF) + places
        return gl.load(places, mask=kept, other=0.0), gl.load(places + HALF, mask=kept, other=0.0)


@gluon.jit
def turn_in_place(tile, cos, sin):
    """Turn a tile in shared memory: forth, where `store_turned` with the same ``cos`` and ``sin`` turns back."""
    layout: gl.constexpr = of_product(tile.shape[1])
    first, second = halves_of(tile.load(layout).to(gl.float32))
    cos, sin = cos.to(gl.float32), sin.to(gl.float32)
    turned = whole_of(first * cos + second * sin, second * cos - first * sin)
    tile.store(gl.convert_layout(turned.to(tile.dtype), layout))


@gluon.jit
def store_turned(x, change, cos, sin, token, head, count, TURNED: gl.constexpr, ROW: gl.constexpr):
    """Write ``count`` rows of a gradient to ``x`` from ``token`` on, perhaps turned."""
    x += token * ROW + head * change.shape[1]
    first, second = halves_of(change)
    if TURNED:
        cos, sin = cos.to(gl.float32), sin.to(gl.float32)
        first, second = first * cos - second * sin, first * sin + second * cos
    store_rows(x, first, ROW, count, count >> 30)
    store_rows(x + first.shape[1], second, ROW, count, count >> 30)
