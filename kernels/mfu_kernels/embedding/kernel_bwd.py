"""The dense gradient of a table in Triton: look-ups sorted by row, and summed in that order.

The work is shared out by look-ups, not by rows, for one row may have half of them. Sorted look-ups are cut into chunks
of equal size. A chunk adds up gradients, in fp32 registers, until the row changes. A row whose look-ups all lie in one
chunk is written by it; of one that goes on, each chunk leaves its part, and a second kernel adds the parts up, in their
order. So there are no atomics, and each gradient is read once.

Sorting is stable, by keys of two bytes where the table's rows have numbers as short: a stable radix sort then moves 40
bytes for each look-up, of which a gradient of 384 numbers in bf16 has 768. A field of few rows could do without, by a
product of its one-hot ids with the gradients on tensor cores; that needs a kernel of its own for each such field, and
would save the sort's share alone, as gradients are read once in either.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, config, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride

from .kernel import rows_of_ids

CHUNK, INTERPRETED_CHUNK = 256, 16  # look-ups; few, so that rows go on through several chunks also on small inputs
SHORT = 1 << 15  # a row's number less this is a key of two bytes, where it can be
MAX_COLUMNS = 512  # of a row that one program adds up


@triton.jit
def embedding_keys_kernel(
    ids, begins, keys, num_lookups, num_rows, event_stride, field_stride,
    SHIFT: tl.constexpr, FIELDS: tl.constexpr, LOOKUPS: tl.constexpr,
):  # fmt: skip
    """The row of each look-up, ``num_rows`` for an id that is none of its field's, less SHIFT."""
    lookups = tl.program_id(0).to(tl.int64) * LOOKUPS + tl.arange(0, LOOKUPS)
    rows, known = rows_of_ids(ids, begins, lookups, num_lookups, event_stride, field_stride, FIELDS)
    found = tl.where(known, rows, num_rows) - SHIFT
    tl.store(keys + lookups, found.to(keys.dtype.element_ty), mask=lookups < num_lookups)


@triton.jit
def _row_at(keys, at, num_lookups, num_rows, SHIFT: tl.constexpr):
    """The row of the sorted look-ups ``at``, int32; outside of them one that there is not."""
    inside = (at >= 0) & (at < num_lookups)
    return tl.where(inside, tl.load(keys + at, mask=inside, other=0).to(tl.int32) + SHIFT, num_rows + 1)


@triton.jit
def embedding_sum_kernel(
    keys, order, grad, dweight, first_parts, last_parts, num_lookups, num_rows, num_chunks, width,
    event_stride, field_stride,
    SHIFT: tl.constexpr, FIELDS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of rows that lie in one of CHUNKS chunks; the part of a row that has begun before, and of one that goes
    on behind. AHEAD gradients are on their way at once."""
    chunks = tl.program_id(0).to(tl.int64) * CHUNKS + tl.arange(0, CHUNKS)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    begin, kept = chunks * CHUNK, columns < width
    part = chunks[:, None] * width + columns
    total = tl.zeros([CHUNKS, WIDTH], dtype=tl.float32)
    row = _row_at(keys, begin, num_lookups, num_rows, SHIFT)
    opened = row == _row_at(keys, begin - 1, num_lookups, num_rows, SHIFT)  # in an earlier chunk
    ended = opened
    for start in range(0, CHUNK, AHEAD):
        values = ()
        for i in tl.static_range(AHEAD):
            at = begin + start + i
            lookup = tl.load(order + at, mask=at < num_lookups, other=0).to(tl.int32)
            place = grad + (lookup // FIELDS).to(tl.int64) * event_stride + (lookup % FIELDS).to(tl.int64) * field_stride
            inside = (at < num_lookups)[:, None] & kept
            value = tl.load(place[:, None] + columns, mask=inside, other=0.0, eviction_policy="evict_first")
            values += (value,)
        for i in tl.static_range(AHEAD):
            following = _row_at(keys, begin + start + i + 1, num_lookups, num_rows, SHIFT)
            total += values[i].to(tl.float32)
            ended = following != row
            if tl.max(ended.to(tl.int32), axis=0) > 0:
                done = (ended & (row < num_rows))[:, None] & kept
                place = dweight + row.to(tl.int64)[:, None] * width + columns
                tl.store(place, total.to(dweight.dtype.element_ty), mask=done & ~opened[:, None])
                tl.store(first_parts + part, total, mask=done & opened[:, None])
                total = tl.where(ended[:, None], 0.0, total)
                opened = opened & ~ended
            row = following
    goes_on = (~ended & (row < num_rows))[:, None] & kept
    tl.store(first_parts + part, total, mask=goes_on & opened[:, None])
    tl.store(last_parts + part, total, mask=goes_on & ~opened[:, None])


@triton.jit
def embedding_join_kernel(
    keys, dweight, first_parts, last_parts, num_lookups, num_rows, num_chunks, width,
    SHIFT: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the row that begins in a chunk and goes on behind: the chunk's part, and those that follow."""
    chunk = tl.program_id(0).to(tl.int64)
    begin, end = chunk * CHUNK, (chunk + 1) * CHUNK
    row = _row_at(keys, end - 1, num_lookups, num_rows, SHIFT)
    goes_on = (row == _row_at(keys, end, num_lookups, num_rows, SHIFT)) & (row < num_rows)
    if goes_on & (row != _row_at(keys, begin - 1, num_lookups, num_rows, SHIFT)):
        columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        kept = columns < width
        total = tl.zeros([PARTS, WIDTH], dtype=tl.float32)
        first = chunk + 1
        while goes_on:
            others = first + tl.arange(0, PARTS)
            same = _row_at(keys, others * CHUNK, num_lookups, num_rows, SHIFT) == row
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
    """Chunks and warps a program, 8 or 16 values a thread."""
    width = min(int(key["width"]), MAX_COLUMNS)
    configs = [
        config(num_warps=warps, CHUNKS=chunks, AHEAD=ahead)
        for ahead in (8, 4, 16)
        for warps in (1, 2, 4)
        for chunks in (1, 2, 4, 8, 16, 32)
        if chunks * width in (8 * 32 * warps, 16 * 32 * warps)
    ]
    return configs or [config(num_warps=1, CHUNKS=max(1, 256 // width), AHEAD=8)]


def _join_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Parts that are on their way at once: a row of half a million look-ups leaves two thousand."""
    return [config(num_warps=4, PARTS=parts) for parts in (64, 32, 128)]


KEYS = Kernel(embedding_keys_kernel, _keys_configs)
SUM = Kernel(embedding_sum_kernel, _sum_configs)
JOIN = Kernel(embedding_join_kernel, _join_configs)


def backward(grad: Tensor, ids: Tensor, begins: Tensor, num_rows: int) -> Tensor:
    """The gradient [R, w] of the table from that of what was looked up, [N, F, w]; as `kernel.forward`'s arguments."""
    num_lookups, width = ids.numel(), grad.shape[2]
    dweight = grad.new_zeros(num_rows, width)
    if not num_lookups:
        return dweight
    grad = with_unit_stride(grad)
    columns, chunk = next_power_of_2(width), INTERPRETED_CHUNK if grad.device.type == "cpu" else CHUNK
    key = {"width": columns, "bytes": grad.element_size()}
    keys, order, shift = _sorted_keys(ids, begins, num_rows, key)
    num_chunks = triton.cdiv(num_lookups, chunk)
    first_parts, last_parts = (grad.new_empty(num_chunks, width, dtype=torch.float32) for _ in "fl")
    block = min(columns, MAX_COLUMNS)
    SUM.launch(
        lambda c: (triton.cdiv(num_chunks, c["CHUNKS"]), triton.cdiv(width, block)), grad.device,
        keys, order, grad, dweight, first_parts, last_parts, num_lookups, num_rows, num_chunks, width,
        *grad.stride()[:2], key=key, SHIFT=shift, FIELDS=ids.shape[1], WIDTH=block, CHUNK=chunk,
    )  # fmt: skip
    if num_chunks > 1:
        block = min(columns, 128)
        JOIN.launch(
            lambda _: (num_chunks - 1, triton.cdiv(width, block)), grad.device,
            keys, dweight, first_parts, last_parts, num_lookups, num_rows, num_chunks, width,
            key=key, SHIFT=shift, CHUNK=chunk, WIDTH=block,
        )  # fmt: skip
    return dweight


def _sorted_keys(ids: Tensor, begins: Tensor, num_rows: int, key: MetaParameters) -> tuple[Tensor, Tensor, int]:
    """Every look-up's row less a shift, in order, which look-up that is, and the shift."""
    short = num_rows < 2 * SHORT
    shift, num_lookups = SHORT if short else 0, ids.numel()
    keys = ids.new_empty(num_lookups, dtype=torch.int16 if short else torch.int32)
    KEYS.launch(
        lambda c: (triton.cdiv(num_lookups, c["LOOKUPS"]),), ids.device,
        ids, begins, keys, num_lookups, num_rows, *ids.stride(), key=key, SHIFT=shift, FIELDS=ids.shape[1],
    )  # fmt: skip
    return *torch.sort(keys, stable=True), shift
