"""The rotation of queries and keys in Gluon: of tiles in shared memory, and back, of gradients in registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mfu_kernels.hopper import halves_of, places_of, store_rows, whole_of


@gluon.constexpr_function
def in_pairs(width):
    """A layout of [64, width] whose threads have both columns of a pair, and 8 columns of a row at a time.

    A table of turns is read in 16 bytes then, and of a tile in shared memory 8 neighbours read different banks, which
    with seed pooling's layout of that name they do not.
    """
    halves = [[0, 8 << bit] for bit in range(width.bit_length() - 5)]
    spread = [*halves, [4, 0], [1, 0], [2, 0], [8, 0]]
    held = [[0, 1], [0, 2], [0, 4], *spread[5:], [0, width // 2]]
    return gl.DistributedLinearLayout(held, spread[:5], [[16, 0], [32, 0]], [], [64, width])


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
def _turn(x, cos, sin):
    """Forth, where `store_turned` with the same ``cos`` and ``sin`` turns back."""
    first, second = halves_of(x.to(gl.float32))
    cos, sin = cos.to(gl.float32), sin.to(gl.float32)
    turned = whole_of(first * cos + second * sin, second * cos - first * sin)
    return gl.convert_layout(turned.to(x.dtype), x.type.layout)


@gluon.jit
def turn_in_place(keys, queries, cos, sin):
    """Turn two tiles in shared memory: both are read before one is written, for the warpgroup waits in between."""
    layout: gl.constexpr = in_pairs(keys.shape[1])
    own_keys, own_queries = keys.load(layout), queries.load(layout)
    keys.store(_turn(own_keys, cos, sin))
    queries.store(_turn(own_queries, cos, sin))


@gluon.jit
def store_turned(x, change, cos, sin, token, head, count, TURNED: gl.constexpr, ROW: gl.constexpr):
    """Write ``count`` rows of a gradient to ``x`` from ``token`` on, perhaps turned."""
    x += token * ROW + head * change.shape[1]
    first, second = halves_of(change)
    if TURNED:
        cos, sin = cos.to(gl.float32), sin.to(gl.float32)
        first, second = first * cos - second * sin, first * sin + second * cos
    if first.shape[1] < 64:  # halves are less than a line of memory each
        store_rows(x, whole_of(first, second), ROW, count, count >> 30)
    else:
        store_rows(x, first, ROW, count, count >> 30)
        store_rows(x + first.shape[1], second, ROW, count, count >> 30)
