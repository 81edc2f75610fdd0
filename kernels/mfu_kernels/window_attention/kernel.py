"""Window attention in Triton, forward: a program owns a block of queries of one head and walks the keys in its window.

Only blocks of keys that some query of the program sees are visited, and only those that some query does not see whole
are masked. Softmax runs over them as they come, with exp2 and a running maximum; the output and what backward needs of
each query's softmax are written once. A token's stride is a constant of the kernel, so that a tile is one address.

Queries and keys are turned before, in a pass of their own, but by the form for Hopper that `kernel_fwd_sm90` has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, config, current, for_hopper, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rotary_time.kernel import rotate_into
from mfu_kernels.rows import num_walkers, with_unit_stride
from mfu_kernels.tiles import LOG2E, load_tile, own_block, store_tile

from . import kernel_fwd_sm90
from .boundary import _fwd_outputs

SIZES = ("num_tokens", "max_length", "behind", "ahead")
"""Numbers that differ from batch to batch, or from model to model: no kernel is compiled anew for one."""
LOWEST = tl.constexpr(-3e38)  # of levels; finite, so that a query which has seen no key yet makes no NaN
SMALLEST_SCALE = 1e-30  # of scores: 0 times the -inf of a masked one is NaN


@triton.jit
def only_near(scores, start, first, before, after, end, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Tile ``scores`` [ROWS, COLUMNS], its rows from ``first``, its columns from ``start``, -inf outside the window.

    A row sees ``before`` columns before its own, ``after`` behind it, and none from ``end`` on. A side of the window
    on which every row sees the whole tile costs no instruction a score.
    """
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    if start < first + ROWS - 1 - before:
        scores = tl.where(columns >= rows + (first - before - start), scores, float("-inf"))
    if start + COLUMNS > tl.minimum(first + after + 1, end):
        scores = tl.where(columns < tl.minimum(rows + (first + after + 1), end) - start, scores, float("-inf"))
    return scores


@triton.jit(do_not_specialize=SIZES)
def window_attention_fwd_kernel(
    q, k, v, offsets, out, levels, turned, turns, num_tokens, max_length, behind, ahead, score_scale, q_h, k_h, v_h,
    PRECISE: tl.constexpr, NUM_HEADS: tl.constexpr, Q_T: tl.constexpr, K_T: tl.constexpr, V_T: tl.constexpr,
    D: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = softmax of ``score_scale`` q kᵀ in base 2, times v, for BLOCK_M queries. q and k are turned already."""
    head, first, begin, length = own_block(offsets, max_length, NUM_HEADS, BLOCK_M)
    if first >= length:
        return
    k += head * k_h
    v += head * v_h
    m, n, first_token = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), begin + first
    own_q = load_tile(q + first_token * Q_T + head * q_h, m, length - first, Q_T, D, PADDED, PARTS)
    level = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, PADDED], tl.float32)
    for start in tl.range(tl.maximum(first - behind, 0), tl.minimum(first + BLOCK_M + ahead, length), BLOCK_N):
        near_k = load_tile(k + (begin + start) * K_T, n, length - start, K_T, D, PADDED, PARTS)
        scores = tl.dot(own_q, tl.trans(near_k), input_precision="ieee")
        scores = only_near(scores, start, first, behind, ahead, length, BLOCK_M, BLOCK_N)
        higher = tl.maximum(level, tl.max(scores, 1) * score_scale)
        weights = tl.exp2(scores * score_scale - higher[:, None])
        fade = tl.exp2(level - higher)
        total = total * fade + tl.sum(weights, 1)
        near_v = load_tile(v + (begin + start) * V_T, n, length - start, V_T, D, PADDED)
        mixed = tl.dot(weights.to(near_v.dtype), near_v, mixed * fade[:, None], input_precision="ieee")
        level = higher
    total = tl.where(total > 0, total, 1.0)  # queries behind the row's end
    store_tile(
        out + (first_token * NUM_HEADS + head) * D, mixed * (1.0 / total)[:, None], m, length - first, NUM_HEADS * D,
        D, PADDED,
    )  # fmt: skip
    places, inside = levels + head * num_tokens + first_token + m, m < length - first
    if PRECISE:
        tl.store(places, level, mask=inside)
        tl.store(places + num_tokens.to(tl.int64) * NUM_HEADS, tl.log2(total), mask=inside)
    else:
        tl.store(places, level + tl.log2(total), mask=inside)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Small tiles on four warps, three stages deep.

    On an H200 with d = 64 and a window of 100, 64 queries and 32 keys a step (89 registers, five programs a
    multiprocessor) take as long as 64 keys (125, four), and 6 % longer in two stages. 128 queries take 17 % longer on
    four warps and 37 % on eight: they mask and skip more scores.

    Where Hopper has a form that walks, it is first: on an H200, in turns, rotation and forward took 1.70 in place of
    2.36 ms (d = 64, a window of 100 both ways) and 0.87 in place of 1.12 (50), and without rotation forward took 1.20
    in place of 1.66 (d = 128, 128 behind).
    """
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, BLOCK_M=32, BLOCK_N=32)]
    tiles = [(64, 32, 4), (64, 64, 4), (128, 32, 8), (128, 64, 8), (64, 128, 4)]
    if key["d"] == 256:
        tiles = [(64, 32, 8), (64, 32, 4)]  # of which the second may spill: 24 bytes on sm_90 with Triton 3.6
    plain = [config(num_warps=w, num_stages=stages, BLOCK_M=m, BLOCK_N=n) for stages in (3, 2) for m, n, w in tiles]
    return [*(kernel_fwd_sm90.configs(key) if "behind" in key else ()), *plain]


FORWARD = Kernel(
    window_attention_fwd_kernel,
    _configs,
    forms={"READERS": (kernel_fwd_sm90.window_attention_fwd_sm90_kernel, kernel_fwd_sm90.arguments)},
)


def reach(window: int | None, causal: bool, max_length: int) -> tuple[int, int]:
    """How far a query sees behind and ahead of itself; no farther than any row goes."""
    behind = max_length if window is None else min(window, max_length)
    return behind, 0 if causal else behind


def constants_of(q: Tensor, k: Tensor, v: Tensor) -> dict[str, int | bool]:
    """How many heads there are, how tokens lie apart, how a head's d columns are held, whether weights are exact.

    Queries and keys of even d are held in two halves: backward turns the pairs that a rotation makes of them.
    """
    strides = {"Q_T": q.stride(0), "K_T": k.stride(0), "V_T": v.stride(0)}
    (_, num_heads, d), precise = q.shape, q.element_size() == 4
    held = {"D": d, "PADDED": max(32, next_power_of_2(d)), "PARTS": 1 if d % 2 else 2}
    return {"PRECISE": precise, "NUM_HEADS": num_heads, **strides, **held}


def key_of(q: Tensor, window: int | None) -> MetaParameters:
    """What the best config depends on; the window to a power of two, 0 for the whole row."""
    near = 0 if window is None else next_power_of_2(window)
    return {"d": max(32, next_power_of_2(q.shape[2])), "bytes": q.element_size(), "window": near}


def _turn(turned: Tensor, q: Tensor, k: Tensor, angles: Tensor) -> None:
    """q and k into ``turned`` [T, 2, H, d]; in one pass, where they lie side by side as they are packed."""
    num_tokens, num_heads, d = q.shape
    same = q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() and q.stride() == k.stride()
    if same and q.stride(1) == d and k.storage_offset() - q.storage_offset() == num_heads * d:
        both = q.as_strided((num_tokens, 2 * num_heads, d), q.stride())
        rotate_into(turned.flatten(1, 2), both, angles, False)
    else:
        rotate_into(turned[:, 0], q, angles, False)
        rotate_into(turned[:, 1], k, angles, False)


def _turn_back(turns: Tensor, angles: Tensor) -> None:
    """(1, 0) turned back by each angle, into ``turns`` [T, 1, d]."""
    unit = turns.new_zeros(1, 1, turns.shape[2])
    unit[..., : angles.shape[1]] = 1
    rotate_into(turns, unit.expand(turns.shape), angles, True)


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, angles: Tensor | None, window: int | None, causal: bool,
    scale: float, max_length: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The output [T, H, d] and what backward needs, as `_fwd_outputs` has it."""
    out, levels, turned, turns = outputs = _fwd_outputs(q, k, v, offsets, angles)
    num_tokens, num_heads, _ = q.shape
    if not num_tokens:
        return outputs
    q, k, v = with_unit_stride(q), with_unit_stride(k), with_unit_stride(v)
    num_items = (offsets.shape[0] - 1) * num_heads
    behind, ahead = reach(window, causal, max_length)
    key = key_of(q, window)
    if for_hopper(q.device) and kernel_fwd_sm90.fits(q, k, v, behind, ahead):
        key = {**key, **kernel_fwd_sm90.tiles_seen(behind, ahead)}
    if angles is not None:
        _turn_back(turns, angles)
        with current(q.device):
            walks = "READERS" in FORWARD.choose(key, q.device).kwargs
        if not walks:
            _turn(turned, q, k, angles)
            q, k = turned.unbind(1)

    def grid(chosen: Mapping[str, Any]) -> tuple[int]:
        if "READERS" in chosen:
            return (min(num_items, num_walkers(q.device, 1)),)
        return (num_items * triton.cdiv(max_length, chosen["BLOCK_M"]),)

    FORWARD.launch(
        grid, q.device,
        q, k, v, offsets, out, levels, *((None, None) if angles is None else (turned, turns)), num_tokens, max_length,
        behind, ahead, max(scale * LOG2E.value, SMALLEST_SCALE), q.stride(1), k.stride(1), v.stride(1),
        key=key, **constants_of(q, k, v),
    )  # fmt: skip
    return outputs
