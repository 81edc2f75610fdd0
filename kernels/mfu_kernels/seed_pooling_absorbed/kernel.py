"""Backward of attending to a row's events with keys and values that are the events themselves, in Triton.

Forward is that of `seed_pooling`. Backward has two kernels, both of which walk along the width of x or along the
queries as a matmul does, so that neither bounds them: the first makes each event's weights and their gradients for
all queries, 16 bits each, a small part of the bytes of x; the second makes the gradient of x from both. That of the
queries, which all rows share, is one matmul over all events.
"""

from collections.abc import Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, cdiv, config, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride
from mfu_kernels.tiles import LOG2E, own_block

from .boundary import _bwd_outputs


@triton.jit
def _tile(x, rows, num_rows, columns, num_columns, stride):
    """Tile [rows, columns] of ``x``, zero outside."""
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    return tl.load(x + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def absorbed_delta_kernel(
    grad, out, delta, num_rows, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """``delta`` [B M]: the product of each pooled row with its gradient."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    for first in range(0, WIDTH, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        pooled = _tile(out, rows, num_rows, columns, WIDTH, WIDTH).to(tl.float32)
        total += tl.sum(pooled * _tile(grad, rows, num_rows, columns, WIDTH, WIDTH).to(tl.float32), axis=1)
    tl.store(delta + rows, total, mask=rows < num_rows)


@triton.jit
def absorbed_weights_kernel(
    grad, queries, x, offsets, highest, total, delta, weights, dscores,
    num_queries, max_length, scale, X_STRIDE: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """P and dS = scale P (g xᵀ - delta), [T, 2, M] in all, of BLOCK_N events and BLOCK_M queries of one row."""
    block, first, begin, length = own_block(offsets, max_length, tl.cdiv(num_queries, BLOCK_M), BLOCK_N)
    if first >= length:
        return
    row = tl.program_id(0) // (tl.cdiv(max_length, BLOCK_N) * tl.cdiv(num_queries, BLOCK_M)).to(tl.int64)
    n, m = tl.arange(0, BLOCK_N), (block * BLOCK_M).to(tl.int32) + tl.arange(0, BLOCK_M)
    x += (begin + first) * X_STRIDE
    grad += row * num_queries * WIDTH
    scores = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    dweights = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        events = _tile(x, n, length - first, columns, WIDTH, X_STRIDE)
        asked = _tile(queries, m, num_queries, columns, WIDTH, WIDTH)
        scores = tl.dot(events, asked.T, scores, input_precision="ieee")
        changed = _tile(grad, m, num_queries, columns, WIDTH, WIDTH)
        dweights = tl.dot(events, changed.T, dweights, input_precision="ieee")
    inside_m = m < num_queries
    place = row * num_queries + m
    level = tl.load(highest + place, mask=inside_m, other=0.0) * (scale * LOG2E)
    inverse = 1.0 / tl.load(total + place, mask=inside_m, other=1.0)
    mean = tl.load(delta + place, mask=inside_m, other=0.0)
    # No score is above its query's highest, but the zeros in place of events outside the row may be.
    own = tl.exp2(tl.minimum(scores * (scale * LOG2E) - level[None, :], 0.0)) * inverse[None, :]
    places = (begin + first + n)[:, None] * (2 * num_queries) + m[None, :]
    inside = (n < length - first)[:, None] & inside_m[None, :]
    tl.store(weights + places, own.to(weights.dtype.element_ty), mask=inside)
    own *= (dweights - mean[None, :]) * scale
    tl.store(dscores + places, own.to(dscores.dtype.element_ty), mask=inside)


@triton.jit
def absorbed_dx_kernel(
    grad, queries, offsets, weights, dscores, dx, num_queries, max_length, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dX = Pᵀ g + dSᵀ queries, for BLOCK_N events of one row and BLOCK_D of their columns."""
    block, first, begin, length = own_block(offsets, max_length, tl.cdiv(WIDTH, BLOCK_D), BLOCK_N)
    if first >= length:
        return
    row = tl.program_id(0) // (tl.cdiv(max_length, BLOCK_N) * tl.cdiv(WIDTH, BLOCK_D)).to(tl.int64)
    n, columns = tl.arange(0, BLOCK_N), (block * BLOCK_D).to(tl.int32) + tl.arange(0, BLOCK_D)
    weights += (begin + first) * 2 * num_queries
    dscores += (begin + first) * 2 * num_queries
    grad += row * num_queries * WIDTH
    change = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for start in range(0, num_queries, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        share = _tile(weights, n, length - first, m, num_queries, 2 * num_queries)
        change = tl.dot(share, _tile(grad, m, num_queries, columns, WIDTH, WIDTH), change, input_precision="ieee")
        share = _tile(dscores, n, length - first, m, num_queries, 2 * num_queries)
        change = tl.dot(share, _tile(queries, m, num_queries, columns, WIDTH, WIDTH), change, input_precision="ieee")
    places = (begin + first + n)[:, None] * WIDTH + columns[None, :]
    inside = (n < length - first)[:, None] & (columns < WIDTH)[None, :]
    tl.store(dx + places, change.to(dx.dtype.element_ty), mask=inside)


def _delta_configs(key: MetaParameters) -> Sequence[triton.Config]:
    return [config(4, 1, BLOCK_M=rows, BLOCK_D=128) for rows in (16, 8)]


def _weights_configs(key: MetaParameters) -> Sequence[triton.Config]:
    block = min(128, max(16, int(key["queries"])))
    if key["bytes"] == 4:
        return [config(4, 2, BLOCK_M=min(32, block), BLOCK_N=32, BLOCK_D=32)]
    tiles = [(8, 3, 64, 128), (8, 3, 128, 64), (4, 3, 64, 64)]
    return [config(w, stages, BLOCK_M=min(m, block), BLOCK_N=n, BLOCK_D=64) for w, stages, m, n in tiles]


def _dx_configs(key: MetaParameters) -> Sequence[triton.Config]:
    width = min(128, max(16, int(key["width"])))
    if key["bytes"] == 4:
        return [config(4, 2, BLOCK_M=16, BLOCK_N=32, BLOCK_D=min(64, width))]
    return [
        config(warps, stages, BLOCK_M=m, BLOCK_N=128, BLOCK_D=width)
        for warps, stages, m in ((8, 3, 32), (8, 3, 64), (8, 2, 64))
    ]


DELTA = Kernel(absorbed_delta_kernel, _delta_configs)
WEIGHTS = Kernel(absorbed_weights_kernel, _weights_configs)
DX = Kernel(absorbed_dx_kernel, _dx_configs)


def backward(
    grad: Tensor, queries: Tensor, x: Tensor, offsets: Tensor, out: Tensor, softmax: Tensor,
    scale: float, max_length: int, needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of ``queries`` and ``x``, those that are needed."""
    dqueries, dx = _bwd_outputs(grad, queries, x, needs)
    (num_keys, width), num_queries, num_rows = x.shape, len(queries), len(out)
    if not num_keys:
        return dqueries.zero_(), dx
    grad, queries, x, offsets = grad.contiguous(), queries.contiguous(), with_unit_stride(x), offsets.contiguous()
    highest, total = (part.contiguous() for part in softmax)
    key = {"queries": next_power_of_2(num_queries), "width": next_power_of_2(width), "bytes": x.element_size()}
    delta, query_blocks = softmax.new_empty(num_rows, num_queries), partial(cdiv, num_queries)
    pairs = x.new_empty(num_keys, 2, num_queries)
    weights, dscores = pairs.unbind(1)
    DELTA.launch(
        lambda c: (cdiv(num_rows * num_queries, c["BLOCK_M"]),), x.device,
        grad, out, delta, num_rows * num_queries, key=key, WIDTH=width,
    )  # fmt: skip
    WEIGHTS.launch(
        lambda c: (num_rows * cdiv(max_length, c["BLOCK_N"]) * query_blocks(c["BLOCK_M"]),), x.device,
        grad, queries, x, offsets, highest, total, delta, weights, dscores, num_queries, max_length, scale,
        key=key, X_STRIDE=x.stride(0), WIDTH=width,
    )  # fmt: skip
    if needs[1]:
        DX.launch(
            lambda c: (num_rows * cdiv(max_length, c["BLOCK_N"]) * cdiv(width, c["BLOCK_D"]),), x.device,
            grad, queries, offsets, weights, dscores, dx, num_queries, max_length, key=key, WIDTH=width,
        )  # fmt: skip
    if needs[0]:
        torch.mm(dscores.T, x, out=dqueries)
    return dqueries, dx
