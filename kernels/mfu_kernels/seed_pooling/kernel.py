"""Seed pooling in Triton, forward: one program for a row's chunk of keys, one head and a block of seeds.

The seeds stay in registers or shared memory while the keys and values of the chunk stream past once, so that the kernel
is bound by reading them. Where rows alone do not fill the device, they are split into chunks; each chunk is then pooled
as if it were a row, in fp32, and a second kernel combines a row's chunks by their softmax denominators, in order.
On Hopper, `kernel_sm90` has a form of its own for many seeds in 16 bits, where rows fill the device.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, capability, cdiv, config, for_hopper, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rotary_time.device import columns_of, together, turned_pairs
from mfu_kernels.rows import PROCESSORS, with_unit_stride

from . import kernel_sm90
from .boundary import _fwd_outputs

PROGRAMS_PER_PROCESSOR = 8
MAX_BLOCK_N = 128
MIN_CHUNK = 256  # keys; shorter chunks spend more on combining than on reading
LOG2_E = 1.4426950408889634


@triton.jit
def program_of(num_seeds, num_heads, BLOCK_S: tl.constexpr):
    """This program's seeds, head and piece of the batch; those that read the same keys follow each other."""
    num_blocks = tl.cdiv(num_seeds, BLOCK_S)
    pid = tl.program_id(0)
    seeds = (pid % num_blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    return seeds, ((pid // num_blocks) % num_heads).to(tl.int64), (pid // num_blocks // num_heads).to(tl.int64)


@triton.jit
def _turned_keys(
    k, angles, turned, inside_n, saved, SAVES: tl.constexpr, NUM_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    K_STRIDE: tl.constexpr, ANGLE_STRIDE: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Keys [BLOCK_N, D] that lie at ``k``, turned, else zeros; if SAVES, ``saved`` columns a half go to ``turned``."""
    n, half = tl.arange(0, BLOCK_N)[:, None].to(tl.int64), tl.arange(0, D // 2)[None, :]
    inside = inside_n[:, None] & (half < WIDTH // 2)
    first = tl.load(k + (n * K_STRIDE + half), mask=inside, other=0.0).to(tl.float32)
    second = tl.load(k + (n * K_STRIDE + half + WIDTH // 2), mask=inside, other=0.0).to(tl.float32)
    turn = tl.load(angles + (n * ANGLE_STRIDE + half), mask=inside, other=0.0).to(tl.float32)
    first, second = turned_pairs(first, second, turn, k.dtype.element_ty)
    if SAVES:
        kept = inside_n[:, None] & (half < saved)
        tl.store(turned + (n * (NUM_HEADS * WIDTH) + half), first, mask=kept)
        tl.store(turned + (n * (NUM_HEADS * WIDTH) + half + WIDTH // 2), second, mask=kept)
    return together(first, second)


@triton.jit
def seed_pooling_fwd_kernel(
    seeds, k, v, angles, offsets, out, highest, total, turned,
    num_seeds, seeds_s, seeds_h, k_h, v_h, scale_log2, num_chunks, chunk_length,
    ROTATED: tl.constexpr, SAVES: tl.constexpr, SAME: tl.constexpr, NUM_HEADS: tl.constexpr,
    K_WIDTH: tl.constexpr, WIDTH: tl.constexpr,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, ANGLE_STRIDE: tl.constexpr,
    K_D: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Pool one chunk of a row. ``out`` [B chunks, S, H, d]; ``highest`` and ``total`` [B chunks, H, S].

    Values may be narrower than keys, or be the keys (SAME). If SAVES, the keys are written to ``turned`` [T, H, d] as
    they are after rotation.
    """
    s, head, piece = program_of(num_seeds, NUM_HEADS, BLOCK_S)
    row, chunk = piece // num_chunks, piece % num_chunks
    n, dims = tl.arange(0, BLOCK_N), tl.arange(0, D)
    inside_s, inside_d = s < num_seeds, dims < WIDTH
    columns, inside_c = columns_of(K_WIDTH, K_D, ROTATED)
    begin = tl.load(offsets + row).to(tl.int64) + chunk * chunk_length
    end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), begin + chunk_length)
    queries = tl.load(
        seeds + head * seeds_h + s[:, None] * seeds_s + columns[None, :],
        mask=inside_s[:, None] & inside_c[None, :], other=0.0,
    )  # fmt: skip
    k += head * k_h
    v += head * v_h
    if SAVES:
        turned += head * K_WIDTH
    # One block of seeds writes them.
    saved_halves = tl.where(tl.program_id(0) % tl.cdiv(num_seeds, BLOCK_S) == 0, K_WIDTH // 2, 0)
    high = tl.full([BLOCK_S], float("-inf"), dtype=tl.float32)
    denominator = tl.zeros([BLOCK_S], dtype=tl.float32)
    pooled = tl.zeros([BLOCK_S, D], dtype=tl.float32)
    for start in range(begin, end, BLOCK_N):
        inside_n = n < end - start
        inside = inside_n[:, None] & inside_d[None, :]
        if ROTATED:
            keys = _turned_keys(
                k + start * K_STRIDE, angles + start * ANGLE_STRIDE, turned + start * (NUM_HEADS * K_WIDTH), inside_n,
                saved_halves, SAVES, NUM_HEADS, K_WIDTH, K_STRIDE, ANGLE_STRIDE, K_D, BLOCK_N,
            )  # fmt: skip
        else:
            keys = tl.load(
                k + start * K_STRIDE + (n[:, None].to(tl.int64) * K_STRIDE + columns[None, :]),
                mask=inside_n[:, None] & inside_c[None, :], other=0.0,
            )  # fmt: skip
        if SAME:
            values = keys
        else:
            values = tl.load(
                v + start * V_STRIDE + (n[:, None].to(tl.int64) * V_STRIDE + dims[None, :]), mask=inside, other=0.0
            )
        scores = tl.dot(queries, keys.T, input_precision="ieee")
        if start + BLOCK_N > end:
            scores = tl.where(inside_n[None, :], scores, float("-inf"))
        higher = tl.maximum(high, tl.max(scores, axis=1))
        weights = tl.exp2(scores * scale_log2 - (higher * scale_log2)[:, None])
        fade = tl.exp2((high - higher) * scale_log2)
        denominator = denominator * fade + tl.sum(weights, axis=1)
        pooled = tl.dot(weights.to(values.dtype), values, pooled * fade[:, None], input_precision="ieee")
        high = higher

    # An empty row gives zeros; an empty chunk of another row is one that nobody reads.
    kept = s < tl.where((begin < end) | (chunk == 0), num_seeds, 0)
    pooled /= tl.where(denominator > 0.0, denominator, 1.0)[:, None]
    places = ((piece * num_seeds + s[:, None]) * NUM_HEADS + head) * WIDTH + dims[None, :]
    tl.store(out + places, pooled.to(out.dtype.element_ty), mask=kept[:, None] & inside_d[None, :])
    place = (piece * NUM_HEADS + head) * num_seeds + s
    tl.store(highest + place, high, mask=kept)
    tl.store(total + place, denominator, mask=kept)


@triton.jit
def seed_pooling_combine_kernel(
    parts, parts_highest, parts_total, offsets, out, highest, total,
    num_heads, num_seeds, width, scale_log2, num_chunks, chunk_length,
    D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Weigh each chunk of a row by its share of the row's softmax denominator, for one head and a block of seeds."""
    s, head, row = program_of(num_seeds, num_heads, BLOCK_S)
    dims = tl.arange(0, D)
    inside_s = s < num_seeds
    inside = inside_s[:, None] & (dims < width)[None, :]
    places = (s[:, None] * num_heads + head) * width + dims[None, :]
    row_size = num_seeds * num_heads * width
    length = (tl.load(offsets + row + 1) - tl.load(offsets + row)).to(tl.int32)
    high = tl.full([BLOCK_S], float("-inf"), dtype=tl.float32)
    denominator = tl.zeros([BLOCK_S], dtype=tl.float32)
    pooled = tl.zeros([BLOCK_S, D], dtype=tl.float32)
    for chunk in range(tl.cdiv(length, chunk_length)):
        piece = row * num_chunks + chunk
        place = (piece * num_heads + head) * num_seeds + s
        part_high = tl.load(parts_highest + place, mask=inside_s, other=0.0)
        part = tl.load(parts + piece * row_size + places, mask=inside, other=0.0)
        higher = tl.maximum(high, part_high)
        fade = tl.exp2((high - higher) * scale_log2)
        share = tl.exp2((part_high - higher) * scale_log2) * tl.load(parts_total + place, mask=inside_s, other=0.0)
        denominator = denominator * fade + share
        pooled = pooled * fade[:, None] + part * share[:, None]
        high = higher

    pooled /= tl.where(denominator > 0.0, denominator, 1.0)[:, None]
    tl.store(out + row * row_size + places, pooled.to(out.dtype.element_ty), mask=inside)
    place = (row * num_heads + head) * num_seeds + s
    tl.store(highest + place, high, mask=inside_s)
    tl.store(total + place, denominator, mask=inside_s)


def _plain_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Short tiles first: what a program holds beside its accumulator then leaves room for more programs.

    At d = 128 in bf16 on sm_90, 32 seeds take 106 registers and 42 KiB of shared memory, so that 4 programs of 4 warps
    share a multiprocessor with 128 KiB of keys and values on their way; 64 seeds take 138, for 3 programs. 128 seeds
    are 8 warps at d = 128, and their tiles 64 keys, for one program has to hide its own latency; at d = 64, 4 warps
    are faster on sm_90, 0.53 against 0.69 ms, and more than an sm_80 has registers for. Keys of twice the values'
    width take room from the tiles: 16 keys let two programs share a multiprocessor.
    """
    block = seed_block(key)
    if key["bytes"] == 4:
        return [config(4, 2, BLOCK_S=block, BLOCK_N=32), config(4, 1, BLOCK_S=block, BLOCK_N=16)]
    if "k_d" in key:
        tiles = [(4, 2, 16), (4, 3, 16), (4, 2, 32)]
    elif block == 128:
        tiles = [(8, 3, 64), (8, 3, 32), (8, 2, 64), (4, 3, 64)]
        if int(key["d"]) <= 64 and capability() // 10 == 9:
            tiles = tiles[::-1]
    elif block == 64:
        tiles = [(4, 3, 32), (4, 2, 64), (4, 3, 64), (8, 3, 64)] if int(key["d"]) <= 128 else [(8, 2, 32), (4, 2, 32)]
    else:
        tiles = [(4, 3, 32), (4, 2, 64), (4, 4, 32), (4, 3, 64), (8, 3, 64)]
        if int(key["d"]) > 128 and "rotated" in key:  # all of which spill
            tiles.insert(0, (8, 2, 32))
    return [config(warps, stages, BLOCK_S=block, BLOCK_N=n) for warps, stages, n in tiles]


def _forward_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """The warpgroups' form for Hopper is first where it won: on an H200, 128 seeds took 0.65 in place of 0.84 ms with
    heads of 64, rotated, and 0.64 in place of 0.70 with heads of 128; 64 seeds did not."""
    plain, own = _plain_configs(key), kernel_sm90.configs(key) if key.get("warpgroups") else []
    return [*own, *plain] if int(key["seeds"]) > 64 else [*plain, *own]


def few_rows_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Of kernels that only pass over pooled rows."""
    return [config(4, 1, BLOCK_S=max(1, 2048 // int(key["d"]))), config(4, 1, BLOCK_S=max(1, 4096 // int(key["d"])))]


FORWARD = Kernel(
    seed_pooling_fwd_kernel,
    _forward_configs,
    forms={"PROGRAMS": (kernel_sm90.seed_pooling_fwd_sm90_kernel, kernel_sm90.arguments)},
)
COMBINE = Kernel(seed_pooling_combine_kernel, few_rows_configs)


def forward(
    seeds: Tensor, k: Tensor, v: Tensor, angles: Tensor | None, offsets: Tensor, scale: float, max_length: int,
    saves: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The pooled rows, what backward needs of their softmaxes, and of the keys."""
    out, softmax, turned = _fwd_outputs(seeds, k, v, angles, offsets, scale, max_length, saves)
    angles = None if angles is None else with_unit_stride(angles)
    same = k is v and angles is None  # turned keys are no values
    seeds, k, v, offsets = with_unit_stride(seeds), with_unit_stride(k), with_unit_stride(v), offsets.contiguous()
    num_seeds, num_heads, _ = seeds.shape
    num_rows, width, key = len(out), v.shape[2], shape_key(seeds, v, angles)
    num_chunks, chunk_length = chunks(num_rows * num_heads, max_length, k.device)
    parts, parts_softmax = out, softmax
    if num_chunks > 1:
        parts = softmax.new_empty(num_rows * num_chunks, *out.shape[1:])
        parts_softmax = softmax.new_empty(2, num_rows * num_chunks, *softmax.shape[2:])
    own = key
    if for_hopper(k.device) and kernel_sm90.fits(seeds, k, v, angles, num_chunks):
        own = {**key, "warpgroups": True}

    def grid(c: MetaParameters) -> tuple[int]:
        if "PROGRAMS" in c:
            return (num_heads * kernel_sm90.programs_of_head(c, num_rows, num_heads, k.device),)
        return (num_rows * num_chunks * num_heads * cdiv(num_seeds, int(c["BLOCK_S"])),)

    FORWARD.launch(
        grid, k.device,
        seeds, k, v, angles, offsets, parts, *parts_softmax, turned,
        num_seeds, *seeds.stride()[:2], k.stride(1), v.stride(1), scale * LOG2_E, num_chunks, chunk_length,
        key=own, **constants_of(k, v, angles, key), SAVES=saves and angles is not None, SAME=same,
        K_WIDTH=seeds.shape[2], K_D=key.get("k_d", key["d"]),
    )  # fmt: skip
    if num_chunks > 1:
        COMBINE.launch(
            lambda c: (num_rows * num_heads * cdiv(num_seeds, c["BLOCK_S"]),), k.device,
            parts, *parts_softmax, offsets, out, *softmax,
            num_heads, num_seeds, width, scale * LOG2_E, num_chunks, chunk_length, key=key, D=key["d"],
        )  # fmt: skip
    return out, softmax, turned


def chunks(num_pairs: int, max_length: int, device: torch.device) -> tuple[int, int]:
    """Into how many chunks, of how many keys, rows are split so that ``num_pairs`` rows and heads fill the device."""
    return pieces(max_length, min(programs_wanted(device, num_pairs), cdiv(max_length, MIN_CHUNK)))


def programs_wanted(device: torch.device, num_groups: int) -> int:
    """Programs for each of ``num_groups`` independent parts of the work, so that together they fill the device."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS
    return -(-PROGRAMS_PER_PROCESSOR * processors // num_groups)


def pieces(length: int, wanted: int) -> tuple[int, int]:
    """About ``wanted`` equal pieces, at least one: how many, and the size of each, a multiple of every tile."""
    size = max(1, cdiv(length, max(1, wanted) * MAX_BLOCK_N)) * MAX_BLOCK_N
    return max(1, cdiv(length, size)), size


def shape_key(seeds: Tensor, v: Tensor, angles: Tensor | None) -> MetaParameters:
    """What the best config depends on."""
    k_d, d = (max(16, next_power_of_2(tensor.shape[2])) for tensor in (seeds, v))
    key = {"seeds": next_power_of_2(seeds.shape[0]), "d": d, "bytes": seeds.element_size()}
    return {**key, **({"k_d": k_d} if k_d != d else {}), **({} if angles is None else {"rotated": True})}


def constants_of(k: Tensor, v: Tensor, angles: Tensor | None, key: MetaParameters) -> MetaParameters:
    """What forward and backward are compiled for: numbers of the model, not of the batch.

    With the stride from event to event a constant, a thread's places in a tile differ by constants, so that it holds
    one address where it would hold eight.
    """
    return {
        "ROTATED": angles is not None,
        "NUM_HEADS": v.shape[1],
        "WIDTH": v.shape[2],
        "K_STRIDE": k.stride(0),
        "V_STRIDE": v.stride(0),
        "ANGLE_STRIDE": 0 if angles is None else angles.stride(0),
        "D": key["d"],
    }


def seed_block(key: MetaParameters) -> int:
    """Seeds of one program: backward holds their gradient, fp32 [d, block], in registers.

    Forward takes the same block in fp32, so that backward finds its scores again to the bit.
    """
    most = 32 if key["bytes"] == 4 else 128 if int(key["d"]) <= 128 else 64
    return min(max(16, int(key["seeds"])), most)
