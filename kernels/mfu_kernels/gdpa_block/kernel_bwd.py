"""The GDPA block in Triton, backward."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.activations_device import activated_with_slope
from mfu_kernels.launching import Kernel, config
from mfu_kernels.modes import MetaParameters

from .boundary import _bwd_outputs
from .kernel import first_and_count, load_tile, meta_parameters, runs_of, store_tile, with_rows_outside


@triton.jit
def normed_tile(x, rows, X_ROW: tl.constexpr, inside, D: tl.constexpr, WIDTH: tl.constexpr, statistics, num_events):
    """n = (x - mean) / std, with the statistics read where they are used: registers are scarce."""
    mean = tl.load(statistics + rows, mask=inside, other=0.0)
    rstd = tl.load(statistics + num_events + rows, mask=inside, other=0.0)
    return (load_tile(x, rows, X_ROW, inside, D, WIDTH).to(tl.float32) - mean[:, None]) * rstd[:, None]


@triton.jit
def gdpa_block_bwd_x_kernel(
    grad, x, k, v, offsets, inner, statistics, dx, dattended, sums,
    num_events, num_keys, max_length, scale, k_batch, k_head, v_batch, v_head,
    H: tl.constexpr, D: tl.constexpr, G_ROW: tl.constexpr, G_HEAD: tl.constexpr,
    X_ROW: tl.constexpr, X_HEAD: tl.constexpr, K_KEY: tl.constexpr, V_KEY: tl.constexpr,
    RUNS: tl.constexpr, FAST: tl.constexpr, NEEDS_X: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch, first, count = first_and_count(offsets, max_length, BLOCK_Q)
    if count > 0:
        rows = tl.arange(0, BLOCK_Q)
        inside = rows < count
        FEATURES: tl.constexpr = H * D
        grad += first * G_ROW
        x += first * X_ROW
        inner += first * FEATURES
        dx += first * FEATURES
        dattended += first * FEATURES
        statistics += first
        sums += first
        k += batch * k_batch
        v += batch * v_batch

        along = tl.zeros([BLOCK_Q], dtype=tl.float32)
        for head in range(H):
            g = load_tile(grad + head * G_HEAD, rows, G_ROW, inside, D, WIDTH).to(tl.float32)
            o = load_tile(inner + head * D, rows, FEATURES, inside, D, WIDTH).to(tl.float32)
            along += tl.sum(g * o, axis=1)
        rrms = tl.load(statistics + 2 * num_events + rows, mask=inside, other=0.0)
        along *= rrms * rrms / FEATURES
        for head in range(H):
            g = load_tile(grad + head * G_HEAD, rows, G_ROW, inside, D, WIDTH).to(tl.float32)
            o = load_tile(inner + head * D, rows, FEATURES, inside, D, WIDTH).to(tl.float32)
            do = (g - o * along[:, None]) * rrms[:, None]
            store_tile(dattended + head * D, rows, FEATURES, inside, D, WIDTH, do)

        if NEEDS_X:
            tl.debug_barrier()  # other threads read what these have stored
            total = tl.zeros([BLOCK_Q], dtype=tl.float32)
            along = tl.zeros([BLOCK_Q], dtype=tl.float32)
            for run in tl.static_range(len(RUNS)):
                for head in range(RUNS[run][1], RUNS[run][2]):
                    do = load_tile(dattended + head * D, rows, FEATURES, inside, D, WIDTH)
                    n = normed_tile(x + head * X_HEAD, rows, X_ROW, inside, D, WIDTH, statistics, num_events)
                    dn = do.to(tl.float32)
                    queries = n.to(k.dtype.element_ty)
                    k_of_head, v_of_head = k + tl.cast(head, tl.int64) * k_head, v + tl.cast(head, tl.int64) * v_head
                    for start in range(0, num_keys, BLOCK_K):
                        keys = start + tl.arange(0, BLOCK_K)
                        keys_of_block = load_tile(k_of_head, keys, K_KEY, keys < num_keys, D, WIDTH)
                        values = load_tile(v_of_head, keys, V_KEY, keys < num_keys, D, WIDTH)
                        scores = tl.dot(queries, keys_of_block.T, input_precision="ieee")
                        dweights = tl.dot(do, values.T, input_precision="ieee")
                        _, slope = activated_with_slope(scores, scale, RUNS[run][0], FAST)
                        dscores = dweights * slope * scale
                        dn = tl.dot(dscores.to(queries.dtype), keys_of_block, dn, input_precision="ieee")
                    rounded = dn.to(dx.dtype.element_ty)
                    store_tile(dx + head * D, rows, FEATURES, inside, D, WIDTH, rounded)
                    n = normed_tile(x + head * X_HEAD, rows, X_ROW, inside, D, WIDTH, statistics, num_events)
                    stored = rounded.to(tl.float32)
                    total += tl.sum(stored, axis=1)
                    along += tl.sum(stored * n, axis=1)
            tl.store(sums + rows, total / FEATURES, mask=inside)
            tl.store(sums + num_events + rows, along / FEATURES, mask=inside)

            tl.debug_barrier()
            total = tl.load(sums + rows, mask=inside, other=0.0)
            along = tl.load(sums + num_events + rows, mask=inside, other=0.0)
            rstd = tl.load(statistics + num_events + rows, mask=inside, other=0.0)
            for head in range(H):
                g = load_tile(grad + head * G_HEAD, rows, G_ROW, inside, D, WIDTH).to(tl.float32)
                n = normed_tile(x + head * X_HEAD, rows, X_ROW, inside, D, WIDTH, statistics, num_events)
                dn = load_tile(dx + head * D, rows, FEATURES, inside, D, WIDTH).to(tl.float32)
                change = g + (dn - total[:, None] - n * along[:, None]) * rstd[:, None]
                store_tile(dx + head * D, rows, FEATURES, inside, D, WIDTH, change)


@triton.jit
def gdpa_block_bwd_kv_kernel(
    dattended, x, k, v, offsets, statistics, dk, dv,
    num_events, num_keys, scale, k_batch, k_head, v_batch, v_head,
    H: tl.constexpr, D: tl.constexpr, X_ROW: tl.constexpr, X_HEAD: tl.constexpr, K_KEY: tl.constexpr, V_KEY: tl.constexpr,
    ACTIVATION: tl.constexpr, FAST: tl.constexpr, NEEDS_K: tl.constexpr, NEEDS_V: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    FEATURES: tl.constexpr = H * D
    blocks_per_row = tl.cdiv(num_keys, BLOCK_K)
    block = tl.program_id(0) % blocks_per_row
    head = tl.program_id(0) // blocks_per_row % H
    batch = (tl.program_id(0) // blocks_per_row // H).to(tl.int64)
    begin = tl.load(offsets + batch).to(tl.int64)
    length = (tl.load(offsets + batch + 1) - begin).to(tl.int32)
    x += begin * X_ROW + head * X_HEAD
    dattended += begin * FEATURES + head * D
    statistics += begin
    keys = block * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = keys < num_keys
    keys_of_block = load_tile(k + batch * k_batch + tl.cast(head, tl.int64) * k_head, keys, K_KEY, inside, D, WIDTH)
    values = load_tile(v + batch * v_batch + tl.cast(head, tl.int64) * v_head, keys, V_KEY, inside, D, WIDTH)
    dkeys = tl.zeros([BLOCK_K, WIDTH], dtype=tl.float32)
    dvalues = tl.zeros([BLOCK_K, WIDTH], dtype=tl.float32)
    for start in range(0, length, BLOCK_Q):
        rows = start + tl.arange(0, BLOCK_Q)
        nearest = tl.minimum(rows, length - 1)
        mean = tl.load(statistics + nearest)
        rstd = tl.load(statistics + num_events + nearest)
        tile = load_tile(x, rows, X_ROW, rows < length, D, WIDTH)
        do = load_tile(dattended, rows, FEATURES, rows < length, D, WIDTH)
        queries = ((tile.to(tl.float32) - mean[:, None]) * rstd[:, None]).to(k.dtype.element_ty)
        scores = tl.dot(keys_of_block, queries.T, input_precision="ieee")
        weights, slope = activated_with_slope(scores, scale, ACTIVATION, FAST)
        if NEEDS_V:
            dvalues = tl.dot(weights.to(do.dtype), do, dvalues, input_precision="ieee")
        if NEEDS_K:
            dweights = tl.dot(values, do.T, input_precision="ieee")
            dkeys = tl.dot((dweights * slope).to(queries.dtype), queries, dkeys, input_precision="ieee")
    to = batch * num_keys * FEATURES + head * D
    if NEEDS_K:
        store_tile(dk + to, keys, FEATURES, inside, D, WIDTH, dkeys * scale)
    if NEEDS_V:
        store_tile(dv + to, keys, FEATURES, inside, D, WIDTH, dvalues)


def _x_configs(key: MetaParameters) -> Sequence[triton.Config]:
    if key["bytes"] == 4:
        return [config(num_warps=4, BLOCK_Q=32, BLOCK_K=32), config(num_warps=4, BLOCK_Q=16, BLOCK_K=16)]
    return [
        config(num_warps=8, num_stages=2, BLOCK_Q=128, BLOCK_K=64),
        config(num_warps=4, num_stages=2, BLOCK_Q=64, BLOCK_K=64),
    ]


def _kv_configs(key: MetaParameters) -> Sequence[triton.Config]:
    if key["bytes"] == 4:
        return [config(num_warps=4, BLOCK_Q=32, BLOCK_K=32), config(num_warps=4, BLOCK_Q=16, BLOCK_K=16)]
    return [
        config(num_warps=8, num_stages=3, BLOCK_Q=32, BLOCK_K=128),
        config(num_warps=4, num_stages=2, BLOCK_Q=32, BLOCK_K=64),
    ]


BACKWARD_X = Kernel(gdpa_block_bwd_x_kernel, _x_configs)
BACKWARD_KV = Kernel(gdpa_block_bwd_kv_kernel, _kv_configs)


def backward(
    grad: Tensor,
    x: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    inner: Tensor,
    statistics: Tensor,
    activation: Sequence[str],
    scale: float,
    max_length: int,
    needs_x: bool,
    needs_k: bool,
    needs_v: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``k`` and ``v``, each empty if it is not needed."""
    dx, dk, dv = _bwd_outputs(
        grad, x, k, v, offsets, inner, statistics, activation, scale, max_length, needs_x, needs_k, needs_v
    )
    num_events, num_heads, d = x.shape
    num_rows, num_keys = k.shape[:2]
    if not num_events:
        return dx, dk.zero_(), dv.zero_()
    grad, x, k, v = (with_rows_outside(tensor) for tensor in (grad, x, k, v))
    key = meta_parameters(x, k)
    shared = {
        "key": key,
        "H": num_heads,
        "D": d,
        "X_ROW": x.stride(0),
        "X_HEAD": x.stride(1),
        "K_KEY": k.stride(1),
        "V_KEY": v.stride(1),
        "FAST": k.element_size() == 2,
        "WIDTH": key["d"],
    }
    strides = (k.stride(0), k.stride(2), v.stride(0), v.stride(2))
    dattended = k.new_empty(x.shape)
    sums = statistics.new_empty(2, num_events)
    BACKWARD_X.launch(
        lambda c: (num_rows * triton.cdiv(max_length, int(c["BLOCK_Q"])),),
        x.device,
        grad,
        x,
        k,
        v,
        offsets,
        inner,
        statistics,
        dx,
        dattended,
        sums,
        num_events,
        num_keys,
        max_length,
        scale,
        *strides,
        G_ROW=grad.stride(0),
        G_HEAD=grad.stride(1),
        RUNS=runs_of(activation),
        NEEDS_X=needs_x,
        **shared,
    )
    if needs_k or needs_v:
        for name, first, last in runs_of(activation):
            BACKWARD_KV.launch(
                lambda c: (num_rows * num_heads * triton.cdiv(num_keys, int(c["BLOCK_K"])),),
                x.device,
                dattended,
                x,
                k,
                v,
                offsets,
                statistics,
                dk,
                dv,
                num_events,
                num_keys,
                scale,
                *strides,
                ACTIVATION=name,
                NEEDS_K=needs_k,
                NEEDS_V=needs_v,
                **shared,
            )
    return dx, dk, dv
