"""What the attention kernels share: which tile a program owns, and how it reads and writes rows of one head."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def own_block(offsets, max_length, num_heads, BLOCK: tl.constexpr):
    """This program's head, its first token within its row, where the row begins, and the row's length.

    Programs run over the blocks of a head first, then over heads, then over rows, so that those which run at the same
    time read the same keys. A row shorter than ``max_length`` leaves its last programs nothing to do.
    """
    num_blocks = tl.cdiv(max_length, BLOCK)
    program = tl.program_id(0)
    head = ((program // num_blocks) % num_heads).to(tl.int64)
    row = program // (num_blocks * num_heads)
    begin = tl.load(offsets + row).to(tl.int64)
    length = (tl.load(offsets + row + 1) - begin).to(tl.int32)
    return head, (program % num_blocks) * BLOCK, begin, length


@triton.jit
def tile_of(rows, num_rows, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr = 1):
    """Element offsets [rows, PADDED] of a tile, and which of them lie within ``num_rows`` and WIDTH.

    A row is held in so many equal PARTS, each padded by itself.
    """
    columns = tl.arange(0, PADDED)
    inside = (rows < num_rows)[:, None]
    if WIDTH < PADDED:
        if PARTS > 1:
            part, columns = columns // (PADDED // PARTS), columns % (PADDED // PARTS)
            inside = inside & (columns < WIDTH // PARTS)[None, :]
            columns += part * (WIDTH // PARTS)
        else:
            inside = inside & (columns < WIDTH)[None, :]
    return rows.to(tl.int64)[:, None] * stride + columns[None, :], inside


@triton.jit
def load_tile(x, rows, num_rows, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr = 1):
    """Tile [rows, PADDED] of ``x``, zero outside."""
    places, inside = tile_of(rows, num_rows, stride, WIDTH, PADDED, PARTS)
    return tl.load(x + places, mask=inside, other=0.0)


@triton.jit
def store_tile(x, tile, rows, num_rows, stride, WIDTH: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr = 1):
    """Write a tile [rows, PADDED] to ``x``, as far as it lies inside."""
    places, inside = tile_of(rows, num_rows, stride, WIDTH, PADDED, PARTS)
    tl.store(x + places, tile.to(x.dtype.element_ty), mask=inside)
