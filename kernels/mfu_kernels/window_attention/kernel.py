"""Window attention in Triton, forward: a program owns a block of queries of one head and walks the keys in its window.

Only blocks of keys that some query of the program sees are visited. Softmax runs over them as they come, with exp2 and
a running maximum; the output, each query's maximum and log2 of its sum are written once.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, config, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride
from mfu_kernels.tiles import LOG2E, load_tile, own_block, store_tile

from .boundary import _fwd_outputs
from .rotation import load_rotated, turns_of

SIZES = ("num_tokens", "num_heads", "max_length", "behind", "ahead")
"""Numbers that differ from batch to batch, or from model to model: no kernel is compiled anew for one."""


@triton.jit
def within(places, first, end):
    """bool: whether each place is at or behind ``first`` and before ``end``, which is at least ``first``.

    One comparison: as an unsigned number, a place before the first is larger than any span.
    """
    return (places - first).to(tl.uint32, bitcast=True) < (end - first).to(tl.uint32, bitcast=True)


@triton.jit(do_not_specialize=SIZES)
def window_attention_fwd_kernel(
    q, k, v, turns, offsets, out, levels,
    num_tokens, num_heads, max_length, behind, ahead, score_scale, q_t, q_h, k_t, k_h, v_t, v_h,
    ROTATED: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = softmax of ``score_scale`` q kᵀ in base 2, times v, for BLOCK_M queries."""
    head, first, begin, length = own_block(offsets, max_length, num_heads, BLOCK_M)
    if first >= length:
        return
    q += begin * q_t + head * q_h
    k += begin * k_t + head * k_h
    v += begin * v_t + head * v_h
    if ROTATED:
        turns += begin * D
    queries = first + tl.arange(0, BLOCK_M)
    earliest, end = queries - behind, tl.minimum(queries + ahead + 1, length)
    own_q = load_rotated(q, turns, queries, length, q_t, D, PADDED, ROTATED)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, PADDED], tl.float32)
    for start in tl.range(tl.maximum(first - behind, 0), tl.minimum(first + BLOCK_M + ahead, length), BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        near_k = load_rotated(k, turns, keys, length, k_t, D, PADDED, ROTATED)
        scores = tl.dot(own_q, tl.trans(near_k), input_precision="ieee")
        seen = within(tl.arange(0, BLOCK_N)[None, :], (earliest - start)[:, None], (end - start)[:, None])
        scores = tl.where(seen, scores * score_scale, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # a query that has seen no key yet
        weights = tl.exp2(scores - level[:, None])
        fade = tl.exp2(highest - level)
        total = total * fade + tl.sum(weights, 1)
        near_v = load_tile(v, keys, length, v_t, D, PADDED)
        mixed = tl.dot(weights.to(near_v.dtype), near_v, mixed * fade[:, None], input_precision="ieee")
        highest = higher
    total = tl.where(total > 0, total, 1.0)  # queries behind the row's end
    store_tile(
        out + (begin * num_heads + head) * D, mixed * (1.0 / total)[:, None], queries, length, num_heads * D, D, PADDED
    )
    places = levels + head * num_tokens + begin + queries
    tl.store(places, highest, mask=queries < length)
    tl.store(places + num_tokens.to(tl.int64) * num_heads, tl.log2(total), mask=queries < length)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """128 queries a program for heads that leave two such programs the registers of a multiprocessor.

    d = 128 on sm_90: 128 registers without rotation and 64 KiB of shared memory, so that two programs of 8 warps share
    a multiprocessor; blocks of 64 keys would need 173 registers, and one program would wait for its own loads.
    """
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, BLOCK_M=32, BLOCK_N=32)]
    tiles = [(128, 32, 8), (64, 32, 4), (64, 64, 4)]
    if key["d"] == 256:
        tiles = [(64, 32, 4)]
    elif key["rotated"]:
        tiles = [(64, 32, 4), (128, 32, 8)]
    return [config(num_warps=w, num_stages=stages, BLOCK_M=m, BLOCK_N=n) for stages in (2, 3) for m, n, w in tiles]


FORWARD = Kernel(window_attention_fwd_kernel, _configs)


def reach(window: int | None, causal: bool, max_length: int) -> tuple[int, int]:
    """How far a query sees behind and ahead of itself; no farther than any row goes."""
    behind = max_length if window is None else min(window, max_length)
    return behind, 0 if causal else behind


def head_constants(d: int, rotated: bool) -> dict[str, int | bool]:
    """How a head's ``d`` columns are held."""
    return {"D": d, "PADDED": max(32, next_power_of_2(d)), "ROTATED": rotated}


def key_of(q: Tensor, rotated: bool, window: int | None) -> MetaParameters:
    """What the best config depends on; the window to a power of two, 0 for the whole row."""
    near = 0 if window is None else next_power_of_2(window)
    return {"d": max(32, next_power_of_2(q.shape[2])), "bytes": q.element_size(), "rotated": rotated, "window": near}


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, angles: Tensor | None,
    window: int | None, causal: bool, scale: float, max_length: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output [T, H, d], and what backward needs of each query's softmax, fp32 [2, H, T]."""
    out, levels = _fwd_outputs(q)
    num_tokens, num_heads, d = q.shape
    if not num_tokens:
        return out, levels
    q, k, v = with_unit_stride(q), with_unit_stride(k), with_unit_stride(v)
    turns = None if angles is None else turns_of(angles, q.dtype)
    num_rows = offsets.shape[0] - 1
    FORWARD.launch(
        lambda c: (num_rows * num_heads * triton.cdiv(max_length, c["BLOCK_M"]),), q.device,
        q, k, v, turns, offsets, out, levels,
        num_tokens, num_heads, max_length, *reach(window, causal, max_length), scale * LOG2E.value,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        key=key_of(q, angles is not None, window), **head_constants(d, angles is not None),
    )  # fmt: skip
    return out, levels
