"""GDPA's forward in Triton.

Short form: keys and values of one row and head fit into shared memory. One program owns them, loads them once, and
streams that row's queries past them in tiles. Above 128 keys they are held as two halves, one after the other, so that
scores of one half are in registers at a time.
Long form: a program owns one tile of queries and its sum in registers, and streams keys and values. Every tile reads
them again from L2, but two programs of 8 warps fit a multiprocessor (sm_90: 124 registers with blocks of 32 keys, where
queries without a scale stay in shared memory), and one multiplies during the other's activation. At 256 keys of d = 128
it takes 1.59 ms where the short form takes 1.70, measured on an H200.
On Hopper, `kernel_sm90` has a short form of its own for 16 bits.

Rows' strides are constants: addresses that a thread would keep in registers make the large tiles spill.
Queries beyond a row's end and keys beyond n_kv are loaded as zeros; act(0) = 0 makes their weights zero.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.activations_device import weights_of
from mfu_kernels.hopper import TILE
from mfu_kernels.launching import Kernel, cdiv, config, for_hopper
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride

from . import kernel_sm90
from .boundary import _fwd_outputs
from .tiles import key_of, load_tile, num_splits, row_of, runs_of_heads, store_tile


@triton.jit
def _attend(queries, keys, values, total, ACTIVATION: tl.constexpr, FAST: tl.constexpr):
    """total + act(queries keysᵀ) values."""
    scores = tl.dot(queries, keys.T, input_precision="tf32" if FAST else "ieee")
    weights = weights_of(scores, ACTIVATION, values.dtype)
    return tl.dot(weights, values, total, input_precision="tf32" if FAST else "ieee")


@triton.jit
def _scaled(queries, scale, SCALED: tl.constexpr):
    """scale queries, rounded as the operands of a product are; queries as they are need no registers."""
    return (queries.to(tl.float32) * scale).to(queries.dtype) if SCALED else queries


@triton.jit
def _keys_at_hand(
    q, k, v, out, scale, length, num_keys, first_tile, splits,
    Q_ROW: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr, OUT_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr, SCALED: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, HALVES: tl.constexpr,
    KEYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Every ``splits``-th tile of queries against HALVES blocks of KEYS keys, loaded once."""
    FAST: tl.constexpr = q.dtype.element_ty != tl.float32
    block = tl.arange(0, KEYS)
    keys = load_tile(k, block, K_ROW, num_keys, DIM, WIDTH)
    values = load_tile(v, block, V_ROW, num_keys, DIM, WIDTH)
    if HALVES == 2:
        more_keys = load_tile(k, KEYS + block, K_ROW, num_keys, DIM, WIDTH)
        more_values = load_tile(v, KEYS + block, V_ROW, num_keys, DIM, WIDTH)
    for first in range(first_tile * TILE, length, splits * TILE):
        rows = first + tl.arange(0, TILE)
        queries = _scaled(load_tile(q, rows, Q_ROW, length, DIM, WIDTH), scale, SCALED)
        total = tl.zeros([TILE, WIDTH], tl.float32)
        total = _attend(queries, keys, values, total, ACTIVATION, FAST)
        if HALVES == 2:
            total = _attend(queries, more_keys, more_values, total, ACTIVATION, FAST)
        store_tile(out, rows, OUT_ROW, length, total, DIM, WIDTH)


@triton.jit
def _queries_at_hand(
    q, k, v, out, scale, length, num_keys, first,
    Q_ROW: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr, OUT_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr, SCALED: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of queries against blocks of KEYS keys; neighbours share keys and values in L2."""
    FAST: tl.constexpr = q.dtype.element_ty != tl.float32
    rows = first + tl.arange(0, TILE)
    queries = _scaled(load_tile(q, rows, Q_ROW, length, DIM, WIDTH), scale, SCALED)
    total = tl.zeros([TILE, WIDTH], tl.float32)
    for first_key in range(0, num_keys, KEYS):
        block = first_key + tl.arange(0, KEYS)
        keys = load_tile(k, block, K_ROW, num_keys, DIM, WIDTH)
        values = load_tile(v, block, V_ROW, num_keys, DIM, WIDTH)
        total = _attend(queries, keys, values, total, ACTIVATION, FAST)
    store_tile(out, rows, OUT_ROW, length, total, DIM, WIDTH)


@triton.jit
def gdpa_fwd_kernel(
    q, k, v, offsets, out, scale, num_keys, first_head, num_heads, max_length, splits, q_head, k_strides, v_strides,
    Q_ROW: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr, OUT_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr, SCALED: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    HALVES: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One row and head, or one of ``splits`` shares of its queries; of HALVES = 0, the long form, one tile of them."""
    if HALVES == 0:
        splits = tl.cdiv(max_length, TILE)
    share, program = tl.program_id(0) % splits, tl.program_id(0) // splits
    row, head = (program // num_heads).to(tl.int64), first_head + program % num_heads
    start, length = row_of(offsets, row)
    q += start * Q_ROW + head * q_head
    out += start * OUT_ROW + head * DIM
    k += row * k_strides[0] + head * k_strides[1]
    v += row * v_strides[0] + head * v_strides[1]
    if HALVES > 0:
        _keys_at_hand(
            q, k, v, out, scale, length, num_keys, share, splits,
            Q_ROW, K_ROW, V_ROW, OUT_ROW, ACTIVATION, SCALED, DIM, WIDTH, HALVES, KEYS, TILE,
        )  # fmt: skip
    elif share * TILE < length:
        _queries_at_hand(
            q, k, v, out, scale, length, num_keys, share * TILE,
            Q_ROW, K_ROW, V_ROW, OUT_ROW, ACTIVATION, SCALED, DIM, WIDTH, KEYS, TILE,
        )  # fmt: skip


def _short_configs(key: MetaParameters) -> list[triton.Config]:
    """With keys and values at hand: at 16 bits up to 256 keys of d = 128, which take 128 KiB."""
    keys, d = int(key["keys"]), int(key["d"])
    if key["bytes"] == 4:
        tiles = [(32, 4, 1), (16, 4, 1)] if d * keys <= 2048 else []
    elif keys > 256 or d * keys > 32_768:
        tiles = []
    elif d * keys > 16_384:
        # Two warpgroups: one multiplies while the other is at its activation. Two stages are for more than an sm_80
        # has: 224 KiB (sm_90: 212 registers, without the second stage 208).
        tiles = [(128, 8, 1), (128, 8, 2), (64, 4, 2), (64, 4, 3)]
    else:
        tiles = [(64, 4, 2), (64, 4, 3), (128, 8, 2), (128, 8, 3), (128, 4, 2)]
        if keys <= 64:  # little work a tile: the third stage pays (measured on an H200)
            tiles[:2] = tiles[1::-1]
    halves = 2 if keys > 128 else 1
    return [
        config(num_warps=warps, num_stages=stages, TILE=tile, KEYS=keys // halves, HALVES=halves)
        for tile, warps, stages in tiles
    ]


def _long_configs(key: MetaParameters) -> list[triton.Config]:
    keys, d = int(key["keys"]), int(key["d"])
    if key["bytes"] == 4:
        tiles = [(32, 32, 4, 1), (32, 16, 4, 1)]
    elif keys <= 128 and d <= 128:
        tiles = []
    else:
        tiles = [(128, 32, 8, 3), (128, 32, 8, 4), (64, 32, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2)]
        tiles += [(128, 64, 8, 3), (64, 128, 4, 2)]
    return [
        config(num_warps=warps, num_stages=stages, TILE=tile, KEYS=size, HALVES=0)
        for tile, size, warps, stages in tiles
        if d * int(key["bytes"]) * (tile + 2 * stages * size) <= SHARED
    ]


def _warpgroup_configs(key: MetaParameters) -> list[triton.Config]:
    """Of `kernel_sm90`: large blocks first, whose products read shared memory less.

    With heads of 128 and 256 keys, one program fills a multiprocessor's shared memory (229,620 bytes, 240 registers).
    Otherwise two programs fit: with heads of 64, two warpgroups of 128 registers each; else one warpgroup each.
    """
    keys, d = int(key["keys"]), int(key["d"])
    if d * keys > 16_384:
        tiles = [(128, 2, 240), (256, 2, 240), (64, 2, 240)]
    elif d == 128:
        tiles = [(128, 1, 240), (64, 1, 240), (128, 2, 240), (64, 2, 240)]
    else:
        tiles = [(64, 2, 128), (128, 1, 240), (64, 1, 240), (128, 2, 240)]
    return [
        config(TILE=TILE, KEYS=size, HALVES=keys // size, GROUPS=groups, REGISTERS=registers)
        for size, groups, registers in tiles
        if size <= keys
    ]


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """On Hopper the warpgroups' form first, where it fits; then the long one above 16,384 numbers of keys."""
    short, long = _short_configs(key), _long_configs(key)
    if short and key["bytes"] == 4:
        return short
    portable = long + short if int(key["d"]) * int(key["keys"]) > 16_384 else short + long
    return [*(_warpgroup_configs(key) if key.get("warpgroups") else ()), *portable]


SHARED = 166_912  # bytes a program may have on sm_80, the least of the targets
FORWARD = Kernel(gdpa_fwd_kernel, _configs, forms={"GROUPS": (kernel_sm90.gdpa_fwd_sm90_kernel, kernel_sm90.arguments)})


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float, activation: list[str], max_length: int
) -> Tensor:
    """act(scale q kᵀ) v, [T, H, d]."""
    out = _fwd_outputs(q)
    if not q.shape[0]:
        return out
    q, k, v = (with_unit_stride(x) for x in (q, k, v))
    key, (num_rows, num_keys) = key_of(q, k), k.shape[:2]
    if for_hopper(q.device) and kernel_sm90.fits(q, k, v):
        key = {**key, "warpgroups": True}
    strides = q.stride(1), k.stride()[:3:2], v.stride()[:3:2]
    steps = {"Q_ROW": q.stride(0), "K_ROW": k.stride(1), "V_ROW": v.stride(1), "OUT_ROW": out.stride(0)}
    for first, heads, name in runs_of_heads(activation):
        constants = {"ACTIVATION": name, "SCALED": scale != 1, "DIM": q.shape[2], "WIDTH": key["d"], **steps}
        splits = num_splits(num_rows * heads, max_length, q.device)
        FORWARD.launch(
            lambda c, n=num_rows * heads, splits=splits: (
                n * (splits if c["HALVES"] else cdiv(max_length, c["TILE"])),
            ),
            q.device, q, k, v, offsets, out, scale, num_keys, first, heads, max_length, splits, *strides,
            key=key, **constants,
        )  # fmt: skip
    return out
