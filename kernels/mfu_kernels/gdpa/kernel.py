"""GDPA's forward in Triton.

Short form: keys and values of one row and head fit into shared memory. One program owns them, loads them once, and
streams that row's queries past them in tiles. Above 128 keys they are held as two halves, one after the other, so that
scores of one half are in registers at a time.
Long form: a program owns one tile of queries and its sum in registers, and streams keys and values.

Rows' strides are constants: addresses that a thread would keep in registers make the large tiles spill.
Queries beyond a row's end and keys beyond n_kv are loaded as zeros; act(0) = 0 makes their weights zero.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.activations_device import activated
from mfu_kernels.launching import Kernel, config
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride

from .boundary import _fwd_outputs
from .tiles import key_of, load_tile, num_splits, row_of, runs_of_heads, store_tile


@triton.jit
def _attend(queries, keys, values, total, scale, ACTIVATION: tl.constexpr, FAST: tl.constexpr):
    """total + act(scale queries keysᵀ) values."""
    scores = tl.dot(queries, keys.T, input_precision="tf32" if FAST else "ieee")
    weights = activated(scores, scale, ACTIVATION, FAST).to(values.dtype)
    return tl.dot(weights, values, total, input_precision="tf32" if FAST else "ieee")


@triton.jit
def gdpa_fwd_short_kernel(
    q, k, v, offsets, out, scale, num_keys, first_head, num_heads, splits, q_head, k_strides, v_strides,
    Q_ROW: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr, OUT_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, HALVES: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One row and head, or every ``splits``-th tile of its queries, with HALVES blocks of KEYS keys at hand."""
    FAST: tl.constexpr = q.dtype.element_ty != tl.float32
    program = tl.program_id(0) // splits
    row, head = (program // num_heads).to(tl.int64), first_head + program % num_heads
    start, length = row_of(offsets, row)
    q += start * Q_ROW + head * q_head
    out += start * OUT_ROW + head * DIM
    k += row * k_strides[0] + head * k_strides[1]
    v += row * v_strides[0] + head * v_strides[1]
    block = tl.arange(0, KEYS)
    keys = load_tile(k, block, K_ROW, num_keys, DIM, WIDTH)
    values = load_tile(v, block, V_ROW, num_keys, DIM, WIDTH)
    if HALVES == 2:
        more_keys = load_tile(k, KEYS + block, K_ROW, num_keys, DIM, WIDTH)
        more_values = load_tile(v, KEYS + block, V_ROW, num_keys, DIM, WIDTH)
    for first in range(tl.program_id(0) % splits * TILE, length, splits * TILE):
        rows = first + tl.arange(0, TILE)
        queries = load_tile(q, rows, Q_ROW, length, DIM, WIDTH)
        total = tl.zeros([TILE, WIDTH], tl.float32)
        total = _attend(queries, keys, values, total, scale, ACTIVATION, FAST)
        if HALVES == 2:
            total = _attend(queries, more_keys, more_values, total, scale, ACTIVATION, FAST)
        store_tile(out, rows, OUT_ROW, length, total, DIM, WIDTH)


@triton.jit
def gdpa_fwd_long_kernel(
    q, k, v, offsets, out, scale, num_keys, first_head, num_heads, max_length, q_head, k_strides, v_strides,
    Q_ROW: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr, OUT_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one row and head against blocks of KEYS keys; neighbours share keys and values in L2."""
    FAST: tl.constexpr = q.dtype.element_ty != tl.float32
    tiles = tl.cdiv(max_length, TILE)
    program = tl.program_id(0) // tiles
    row, head = (program // num_heads).to(tl.int64), first_head + program % num_heads
    start, length = row_of(offsets, row)
    first = tl.program_id(0) % tiles * TILE
    if first >= length:
        return
    q += start * Q_ROW + head * q_head
    out += start * OUT_ROW + head * DIM
    k += row * k_strides[0] + head * k_strides[1]
    v += row * v_strides[0] + head * v_strides[1]
    rows = first + tl.arange(0, TILE)
    queries = load_tile(q, rows, Q_ROW, length, DIM, WIDTH)
    total = tl.zeros([TILE, WIDTH], tl.float32)
    for first_key in range(0, num_keys, KEYS):
        block = first_key + tl.arange(0, KEYS)
        keys = load_tile(k, block, K_ROW, num_keys, DIM, WIDTH)
        values = load_tile(v, block, V_ROW, num_keys, DIM, WIDTH)
        total = _attend(queries, keys, values, total, scale, ACTIVATION, FAST)
    store_tile(out, rows, OUT_ROW, length, total, DIM, WIDTH)


def _short_configs(key: MetaParameters) -> Sequence[triton.Config]:
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, TILE=tile) for tile in (32, 16)]
    tiles = [(64, 4, 2), (64, 8, 2), (128, 8, 2), (64, 4, 3)]
    if int(key["d"]) * int(key["keys"]) > 16_384:
        # Two warpgroups: one multiplies while the other is at its activation. Two stages are for more than an sm_80
        # has: 224 KiB (sm_90: 212 registers, without the second stage 208).
        tiles = [(128, 8, 1), (128, 8, 2), (64, 4, 2), (64, 4, 3)]
    return [config(num_warps=warps, num_stages=stages, TILE=tile) for tile, warps, stages in tiles]


def _long_configs(key: MetaParameters) -> Sequence[triton.Config]:
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, TILE=32, KEYS=keys) for keys in (32, 16)]
    return [
        config(num_warps=warps, num_stages=stages, TILE=tile, KEYS=keys)
        for tile, keys, warps, stages in ((128, 64, 8, 2), (64, 64, 4, 2), (128, 128, 8, 2), (64, 64, 4, 3))
        if int(key["d"]) * 2 * (tile + 2 * stages * keys) <= SHARED
    ]


SHARED = 166_912  # bytes a program may have on sm_80, the least of the targets
SHORT = Kernel(gdpa_fwd_short_kernel, _short_configs)
LONG = Kernel(gdpa_fwd_long_kernel, _long_configs)


def _is_short(key: MetaParameters) -> bool:
    """Whether keys and values stay at hand: at 16 bits up to 256 keys of d = 128, which take 128 KiB."""
    if key["bytes"] == 4:
        return int(key["d"]) * int(key["keys"]) <= 2048
    return int(key["keys"]) <= 256 and int(key["d"]) * int(key["keys"]) <= 32_768


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float, activation: list[str], max_length: int
) -> Tensor:
    """act(scale q kᵀ) v, [T, H, d]."""
    out = _fwd_outputs(q, k, v, offsets, scale, activation, max_length)
    if not q.shape[0]:
        return out
    q, k, v = (with_unit_stride(x) for x in (q, k, v))
    key, (num_rows, num_keys) = key_of(q, k), k.shape[:2]
    strides = q.stride(1), k.stride()[:3:2], v.stride()[:3:2]
    steps = {"Q_ROW": q.stride(0), "K_ROW": k.stride(1), "V_ROW": v.stride(1), "OUT_ROW": out.stride(0)}
    for first, heads, name in runs_of_heads(activation):
        constants = {"ACTIVATION": name, "DIM": q.shape[2], "WIDTH": key["d"], **steps}
        programs = num_rows * heads
        if _is_short(key):
            halves = 2 if int(key["keys"]) > 128 else 1
            splits = num_splits(programs, max_length, q.device)
            SHORT.launch(
                lambda _, n=programs * splits: (n,), q.device,
                q, k, v, offsets, out, scale, num_keys, first, heads, splits, *strides,
                key=key, KEYS=int(key["keys"]) // halves, HALVES=halves, **constants,
            )  # fmt: skip
        else:
            LONG.launch(
                lambda c, n=programs: (n * triton.cdiv(max_length, c["TILE"]),), q.device,
                q, k, v, offsets, out, scale, num_keys, first, heads, max_length, *strides,
                key=key, **constants,
            )  # fmt: skip
    return out
