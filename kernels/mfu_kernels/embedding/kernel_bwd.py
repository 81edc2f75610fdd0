"""The dense gradient of a table in Triton: look-ups sorted by row, and summed in that order.

The work is shared out by look-ups, not by rows, for one row may have half of them. Sorted look-ups are cut into chunks
of equal size. A chunk adds up gradients, in fp32 registers, until the row changes. A row whose look-ups all lie in one
chunk is written by it; of one that goes on, each chunk leaves its part, and a second kernel adds the parts up, in their
order. So there are no atomics, and each gradient is read once.

Sorting is stable, by keys of two bytes where the table's rows have numbers as short: a radix sort then moves 40 bytes
for each look-up, in two passes, where a gradient of 384 numbers in bf16 has 768. A field of few rows could do without,
by a product of its one-hot ids with the gradients on tensor cores. That would take a launch for each such field, and
parts of its own to add up, to save the sort's share of the bytes: in either, gradients are read once.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, cdiv, config, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride

from .kernel import rows_of_ids

MIN_CHUNK, MAX_CHUNK = 8, 256  # look-ups of a chunk: fewer, and a part is left of every other row; more, and some wait
ENOUGH_CHUNKS = 2048  # to fill a GPU
SHORT = 1 << 15  # a row's number less this is a key of two bytes, where it can be
MAX_BYTES = 1024  # of a row that one program adds up: 16 numbers in bf16 a thread


@triton.jit
def embedding_keys_kernel(
    ids, offsets, keys, num_lookups, num_rows, event_stride, field_stride,
    SHIFT: tl.constexpr, FIELDS: tl.constexpr, LOOKUPS: tl.constexpr,
):  # fmt: skip
    """The row of each look-up, ``num_rows`` for an id that is none of its field's, less SHIFT."""
    lookups = tl.program_id(0).to(tl.int64) * LOOKUPS + tl.arange(0, LOOKUPS)
    rows, known = rows_of_ids(ids, offsets, lookups, num_lookups, event_stride, field_stride, FIELDS)
    found = tl.where(known, rows, num_rows) - SHIFT
    tl.store(keys + lookups, found.to(keys.dtype.element_ty), mask=lookups < num_lookups)


@triton.jit
def _row_at(keys, at, num_lookups, num_rows, SHIFT: tl.constexpr):
    """The row of the sorted look-ups ``at``, int32; outside of them one that there is not."""
    inside = (at >= 0) & (at < num_lookups)
    return tl.load(keys + at, mask=inside, other=num_rows + 1 - SHIFT).to(tl.int32) + SHIFT


@triton.jit
def embedding_sum_kernel(
    keys, order, grad, dweight, first_parts, last_parts, num_lookups, num_rows, width, event_stride, field_stride, size,
    SHIFT: tl.constexpr, FIELDS: tl.constexpr, FLAT: tl.constexpr, WIDTH: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The gradients of rows that lie in one chunk of ``size``; the parts of a row from before and of one that goes on.

    AHEAD look-ups are on their way at once. Behind the last one it comes again, for a row that there is not.
    """
    chunk = tl.program_id(0)
    begin, part = chunk * size, chunk.to(tl.int64) * width
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    kept = columns < width
    total = tl.zeros([WIDTH], dtype=tl.float32)
    row = _row_at(keys, begin, num_lookups, num_rows, SHIFT)
    opened = row == _row_at(keys, begin - 1, num_lookups, num_rows, SHIFT)  # in an earlier chunk
    for start in range(0, size, AHEAD):
        values, following = (), ()
        for i in tl.static_range(AHEAD):
            at = begin + start + i
            lookup = tl.load(order + tl.minimum(at, num_lookups - 1))
            if FLAT:
                place = lookup * field_stride
            else:
                place = (lookup // FIELDS) * event_stride + (lookup % FIELDS) * field_stride
            value = tl.load(grad + place + columns, mask=kept, other=0.0, eviction_policy="evict_first")
            values += (value,)  # type: ignore[assignment]
            following += (_row_at(keys, at + 1, num_lookups, num_rows, SHIFT),)  # type: ignore[assignment]
        for i in tl.static_range(AHEAD):
            total += values[i].to(tl.float32)
            if following[i] != row:
                known = columns < tl.where(row < num_rows, width, 0)
                if opened:
                    tl.store(first_parts + part + columns, total, mask=known)
                else:
                    rows = dweight + row.to(tl.int64) * width + columns
                    tl.store(rows, total.to(dweight.dtype.element_ty), mask=known)
                total = tl.zeros([WIDTH], dtype=tl.float32)
                opened = False
                row = following[i]
    if (row == _row_at(keys, begin + size - 1, num_lookups, num_rows, SHIFT)) & (row < num_rows):
        parts = tl.where(opened, first_parts, last_parts)
        tl.store(parts + part + columns, total, mask=kept)


@triton.jit
def embedding_join_kernel(
    keys, dweight, first_parts, last_parts, num_lookups, num_rows, width, size,
    SHIFT: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the row that begins in a chunk and goes on behind: the chunk's part, and those that follow."""
    chunk = tl.program_id(0).to(tl.int64)
    begin, end = chunk * size, (chunk + 1) * size
    row = _row_at(keys, end - 1, num_lookups, num_rows, SHIFT)
    goes_on = (row == _row_at(keys, end, num_lookups, num_rows, SHIFT)) & (row < num_rows)
    if goes_on & (row != _row_at(keys, begin - 1, num_lookups, num_rows, SHIFT)):
        columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        kept = columns < width
        total = tl.zeros([PARTS, WIDTH], dtype=tl.float32)
        first = chunk + 1
        while goes_on:
            others = first + tl.arange(0, PARTS)
            same = _row_at(keys, others * size, num_lookups, num_rows, SHIFT) == row
            parts = first_parts + others[:, None] * width + columns[None, :]
            total += tl.load(parts, mask=same[:, None] & kept[None, :], other=0.0)
            goes_on = tl.min(same.to(tl.int32), axis=0) > 0
            first += PARTS
        joined = tl.load(last_parts + chunk * width + columns, mask=kept, other=0.0) + tl.sum(total, axis=0)
        place = dweight + row.to(tl.int64) * width + columns
        tl.store(place, joined.to(dweight.dtype.element_ty), mask=kept)


def _keys_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """A look-up reads 8 bytes and writes 2."""
    return [config(num_warps=4, LOOKUPS=512), config(num_warps=4, LOOKUPS=1024), config(num_warps=4, LOOKUPS=256)]


def _sum_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Columns and warps a program, with 16 bytes a thread or twice that where a row has as many.

    On sm_90 in bf16, 512 columns on one warp take 121 registers and 256 take 72, so that 16 and 28 warps are resident,
    each with 8 rows on their way: of 384 and 192 columns, 98 and 86 KB a multiprocessor. While the row stays the same,
    a look-up takes 71 and 46 instructions. AHEAD divides MIN_CHUNK.
    """
    widest = min(int(key["width"]), MAX_BYTES // int(key["bytes"]))
    return [
        config(num_warps=warps, WIDTH=width, AHEAD=ahead)
        for ahead in (8, 4)
        for width in (widest, widest // 2)
        for warps in (1, 2)
        if width * int(key["bytes"]) >= 512 * warps or (width == widest and warps == 1)
    ]


def _join_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Parts that are on their way at once, and columns: a row of half a million look-ups leaves two thousand parts.

    Most programs find no row that begins in their chunk and goes on, and end.
    """
    width = int(key["width"])
    return [
        config(num_warps=4, WIDTH=min(width, columns), PARTS=parts)
        for columns, parts in ((64, 64), (128, 32), (128, 64), (32, 128))
    ]


KEYS = Kernel(embedding_keys_kernel, _keys_configs)
SUM = Kernel(embedding_sum_kernel, _sum_configs)
JOIN = Kernel(embedding_join_kernel, _join_configs)


def backward(grad: Tensor, ids: Tensor, offsets: Tensor, num_rows: int) -> Tensor:
    """The gradient [R, w] of the table from that of what was looked up, [N, F, w]."""
    num_lookups, width = ids.numel(), grad.shape[2]
    dweight = grad.new_zeros(num_rows, width)
    if not num_lookups:
        return dweight
    grad = with_unit_stride(grad)
    key = {"width": next_power_of_2(width), "bytes": grad.element_size()}
    keys, order, shift = _sorted_keys(ids, offsets, num_rows, key)
    size = min(MAX_CHUNK, max(MIN_CHUNK, next_power_of_2(num_lookups // ENOUGH_CHUNKS)))
    num_chunks = cdiv(num_lookups, size)
    first_parts, last_parts = (grad.new_empty(num_chunks, width, dtype=torch.float32) for _ in "fl")
    SUM.launch(
        lambda c: (num_chunks, cdiv(width, c["WIDTH"])), grad.device,
        keys, order, grad, dweight, first_parts, last_parts, num_lookups, num_rows, width,
        *grad.stride()[:2], size, key=key, SHIFT=shift, FIELDS=ids.shape[1],
        FLAT=grad.stride(0) == ids.shape[1] * grad.stride(1),
    )  # fmt: skip
    if num_chunks > 1:
        JOIN.launch(
            lambda c: (num_chunks - 1, cdiv(width, c["WIDTH"])), grad.device,
            keys, dweight, first_parts, last_parts, num_lookups, num_rows, width, size,
            key=key, SHIFT=shift,
        )  # fmt: skip
    return dweight


def _sorted_keys(ids: Tensor, offsets: Tensor, num_rows: int, key: MetaParameters) -> tuple[Tensor, Tensor, int]:
    """Every look-up's row less a shift, in order, which look-up that is, and the shift."""
    short = num_rows + 2 <= 2 * SHORT  # with that of an id that is none, and of none at all
    shift, num_lookups = SHORT if short else 0, ids.numel()
    keys = ids.new_empty(num_lookups, dtype=torch.int16 if short else torch.int32)
    KEYS.launch(
        lambda c: (cdiv(num_lookups, c["LOOKUPS"]),), ids.device,
        ids, offsets.contiguous(), keys, num_lookups, num_rows, *ids.stride(),
        key=key, SHIFT=shift, FIELDS=ids.shape[1],
    )  # fmt: skip
    return *torch.sort(keys, stable=True), shift
