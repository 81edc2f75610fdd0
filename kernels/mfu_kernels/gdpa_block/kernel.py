"""The GDPA block in Triton, forward: one kernel, and a program owns all heads of BLOCK_Q events of one row.

The norms run over all heads, so nothing less than whole events can be finished. A program therefore passes over its
events three times, the second and third time out of the L2 cache: for the statistics of LN, for each head's attention,
which leaves o = GDPA(n) + n in memory, and for out = x + o / rms(o). Keys and values are read again by every program of
a row. Where no backward follows, ``out`` itself holds o meanwhile, and device memory sees x, k, v and ``out`` once.

A backward needs o and not out - x, whose rounding grows with x. o is rounded to x's dtype once, and rms(o) is of what
is stored. n and the accumulators stay in fp32.
"""

from collections.abc import Sequence
from itertools import groupby

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.activations_device import activated
from mfu_kernels.launching import Kernel, config, next_power_of_2
from mfu_kernels.modes import MetaParameters

from .boundary import _fwd_outputs


@triton.jit
def load_tile(base, rows, STRIDE: tl.constexpr, inside, D: tl.constexpr, WIDTH: tl.constexpr):
    """[rows, WIDTH] of one head of D features, zeros outside.

    Strides that are constants leave one pointer a thread; offsets of 64 bits let the compiler fold the rest.
    """
    columns = tl.arange(0, WIDTH)
    pointers = base + rows.to(tl.int64)[:, None] * STRIDE + columns.to(tl.int64)[None, :]
    return tl.load(pointers, mask=inside[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def store_tile(base, rows, STRIDE: tl.constexpr, inside, D: tl.constexpr, WIDTH: tl.constexpr, tile):
    """Write what `load_tile` reads."""
    columns = tl.arange(0, WIDTH)
    pointers = base + rows.to(tl.int64)[:, None] * STRIDE + columns.to(tl.int64)[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside[:, None] & (columns < D)[None, :])


@triton.jit
def first_and_count(offsets, max_length, BLOCK: tl.constexpr):
    """Row of this program, its first event, and how many of BLOCK events from there on are left in the row."""
    blocks_per_row = tl.cdiv(max_length, BLOCK)
    batch = (tl.program_id(0) // blocks_per_row).to(tl.int64)
    skipped = (tl.program_id(0) % blocks_per_row) * BLOCK
    begin = tl.load(offsets + batch).to(tl.int64)
    length = (tl.load(offsets + batch + 1) - begin).to(tl.int32)
    return batch, begin + skipped, length - skipped


@triton.jit
def layer_norm_statistics(x, X_HEAD, X_ROW, eps, rows, inside, H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Mean and 1 / std of each event over all heads, whose means and squared deviations are merged one after another.

    cf. Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (1979).
    """
    kept = (tl.arange(0, WIDTH) < D)[None, :]
    mean = tl.zeros([rows.shape[0]], dtype=tl.float32)
    squares = tl.zeros([rows.shape[0]], dtype=tl.float32)
    for head in range(H):
        tile = load_tile(x + head * X_HEAD, rows, X_ROW, inside, D, WIDTH).to(tl.float32)
        of_head = tl.sum(tile, axis=1) / D
        deviations = tl.where(kept, tile - of_head[:, None], 0.0)
        step = of_head - mean
        mean += step / (head + 1)
        squares += tl.sum(deviations * deviations, axis=1) + step * step * (D * head / (head + 1))
    return mean, tl.rsqrt(squares / (H * D) + eps)


@triton.jit
def gdpa_block_fwd_kernel(
    x, k, v, offsets, out, inner, statistics, num_events, num_keys, max_length, scale, eps,
    k_batch, k_head, v_batch, v_head,
    H: tl.constexpr, D: tl.constexpr, X_ROW: tl.constexpr, X_HEAD: tl.constexpr, K_KEY: tl.constexpr, V_KEY: tl.constexpr,
    RUNS: tl.constexpr, FAST: tl.constexpr, SAVE: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = x + o / rms(o) with o = GDPA(n, k, v) + n and n = LN(x); ``inner`` holds o and may be ``out``."""
    batch, first, count = first_and_count(offsets, max_length, BLOCK_Q)
    if count > 0:
        rows, columns = tl.arange(0, BLOCK_Q), tl.arange(0, WIDTH)
        inside = rows < count
        FEATURES: tl.constexpr = H * D
        x += first * X_ROW
        out += first * FEATURES
        inner += first * FEATURES
        k += batch * k_batch
        v += batch * v_batch

        mean, rstd = layer_norm_statistics(x, X_HEAD, X_ROW, eps, rows, inside, H, D, WIDTH)
        squares = tl.zeros([BLOCK_Q], dtype=tl.float32)
        for run in tl.static_range(len(RUNS)):
            for head in range(RUNS[run][1], RUNS[run][2]):
                tile = load_tile(x + head * X_HEAD, rows, X_ROW, inside, D, WIDTH)
                o = (tile.to(tl.float32) - mean[:, None]) * rstd[:, None]
                queries = o.to(k.dtype.element_ty)
                k_of_head, v_of_head = k + tl.cast(head, tl.int64) * k_head, v + tl.cast(head, tl.int64) * v_head
                for start in range(0, num_keys, BLOCK_K):
                    keys = start + tl.arange(0, BLOCK_K)
                    keys_of_block = load_tile(k_of_head, keys, K_KEY, keys < num_keys, D, WIDTH)
                    values = load_tile(v_of_head, keys, V_KEY, keys < num_keys, D, WIDTH)
                    scores = tl.dot(queries, keys_of_block.T, input_precision="ieee")
                    weights = activated(scores, scale, RUNS[run][0], FAST).to(values.dtype)
                    o = tl.dot(weights, values, o, input_precision="ieee")
                rounded = o.to(inner.dtype.element_ty)
                store_tile(inner + head * D, rows, FEATURES, inside, D, WIDTH, rounded)
                stored = tl.where((columns < D)[None, :], rounded.to(tl.float32), 0.0)
                squares += tl.sum(stored * stored, axis=1)
        rrms = tl.rsqrt(squares / FEATURES + eps)

        tl.debug_barrier()  # other threads read what these have stored
        for head in range(H):
            tile = load_tile(x + head * X_HEAD, rows, X_ROW, inside, D, WIDTH).to(tl.float32)
            stored = load_tile(inner + head * D, rows, FEATURES, inside, D, WIDTH).to(tl.float32)
            store_tile(out + head * D, rows, FEATURES, inside, D, WIDTH, tile + stored * rrms[:, None])
        if SAVE:
            statistics += first
            tl.store(statistics + rows, mean, mask=inside)
            tl.store(statistics + num_events + rows, rstd, mask=inside)
            tl.store(statistics + 2 * num_events + rows, rrms, mask=inside)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    d, itemsize = int(key["d"]), int(key["bytes"])
    if itemsize == 4:
        return [config(num_warps=4, BLOCK_Q=32, BLOCK_K=32), config(num_warps=4, BLOCK_Q=16, BLOCK_K=16)]
    return [
        config(num_warps=8, num_stages=2, BLOCK_Q=128, BLOCK_K=64),
        config(num_warps=4, num_stages=2, BLOCK_Q=64, BLOCK_K=64),
        config(num_warps=4, num_stages=3, BLOCK_Q=64, BLOCK_K=32),
    ]


FORWARD = Kernel(gdpa_block_fwd_kernel, _configs)


def runs_of(activation: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """Heads next to each other that share an activation: its name, the first of them, and the first after them."""
    runs: list[tuple[str, int, int]] = []
    for name, heads in groupby(activation):
        first = runs[-1][2] if runs else 0
        runs.append((name, first, first + len(list(heads))))
    return tuple(runs)


def with_rows_outside(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension is dense and its first has the largest stride, else a copy.

    The other strides are constants of the kernels, which a stride that depends on a batch's size is not.
    """
    *others, last = tensor.stride()
    return tensor if last == 1 and others[0] == max(others) else tensor.contiguous()


def meta_parameters(x: Tensor, k: Tensor) -> MetaParameters:
    """What the best config depends on."""
    return {
        "d": max(16, next_power_of_2(x.shape[2])),
        "num_keys": next_power_of_2(k.shape[1]),
        "bytes": k.element_size(),
    }


def forward(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    activation: Sequence[str],
    scale: float,
    eps: float,
    max_length: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The block's output [T, H, d], and if ``save``, o and the statistics that a backward needs."""
    out, inner, statistics = _fwd_outputs(x, k, v, offsets, activation, scale, eps, max_length, save)
    num_events, num_heads, d = x.shape
    if num_events:
        x, k, v = (with_rows_outside(tensor) for tensor in (x, k, v))
        key = meta_parameters(x, k)

        def grid(c: MetaParameters) -> tuple[int]:
            return (k.shape[0] * triton.cdiv(max_length, int(c["BLOCK_Q"])),)

        FORWARD.launch(
            grid, x.device,
            x, k, v, offsets, out, inner if save else out, statistics, num_events, k.shape[1], max_length, scale, eps,
            k.stride(0), k.stride(2), v.stride(0), v.stride(2),
            key=key, H=num_heads, D=d, X_ROW=x.stride(0), X_HEAD=x.stride(1), K_KEY=k.stride(1), V_KEY=v.stride(1),
            RUNS=runs_of(activation), FAST=k.element_size() == 2, SAVE=save, WIDTH=key["d"],
        )  # fmt: skip
    return out, inner, statistics
