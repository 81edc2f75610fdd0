"""HSTU attention in Triton, forward: a program owns a block of queries of one head and walks the keys that they see.

SiLU needs no statistics of a row, so the output is a plain sum over blocks of keys. Blocks that no query of the program
sees are not visited; `mask` says which those are.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, cdiv, config, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride
from mfu_kernels.tiles import LOG2E, load_tile, own_block, store_tile

from .boundary import _fwd_outputs
from .mask import keys_to_visit, positions_of, seen_by, visit

SIZES = ("num_heads", "max_length", "window", "first_keys", "num_candidates", "bias_length")
"""Numbers that differ from batch to batch, or from model to model: no kernel is compiled anew for one."""


@triton.jit
def scores_of(products, bias, queries, keys, seen, history, bias_length, alpha, HAS_BIAS: tl.constexpr):
    """alpha q kᵀ + bias, where ``products`` are q kᵀ and ``bias`` is one head's, by distance."""
    scores = products * alpha
    if HAS_BIAS:
        behind = positions_of(queries, history) - positions_of(keys, history)
        places = tl.minimum(tl.maximum(behind, 0), bias_length - 1)
        scores += tl.load(bias + places, mask=seen, other=0.0).to(tl.float32)
    return scores


@triton.jit
def visited(
    block, ranges, own_q, k, bias, queries, length, history, window, first_keys, bias_length, alpha, k_t,
    HAS_BIAS: tl.constexpr, ONE_CANDIDATE: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of one of the blocks of keys that `keys_to_visit` counts: which they are, k, and which are seen with what score.

    Scores [queries, keys] of ``own_q``; ``k`` is that of a row and head, ``bias`` of the head.
    """
    start, end = visit(block, ranges, BLOCK_N)
    keys = start + tl.arange(0, BLOCK_N)
    near_k = load_tile(k, keys, length, k_t, D, PADDED)
    products = tl.dot(own_q, tl.trans(near_k), input_precision="ieee")
    seen = seen_by(queries[:, None], keys[None, :], end, history, window, first_keys, ONE_CANDIDATE)
    scores = scores_of(
        products, bias, queries[:, None], keys[None, :], seen, history, bias_length, alpha, HAS_BIAS
    )  # fmt: skip
    return keys, near_k, seen, scores


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def silu_backward(dweights, scores, gate, seen):
    """Gradients of scores, of those of their weights; ``gate`` is the scores' sigmoid."""
    return tl.where(seen, dweights * gate * (1.0 + scores * (1.0 - gate)), 0.0)


@triton.jit(do_not_specialize=SIZES)
def hstu_attention_fwd_kernel(
    q, k, v, offsets, bias, out,
    num_heads, max_length, window, first_keys, num_candidates, bias_length, alpha, weight_scale,
    q_t, q_h, k_t, k_h, v_t, v_h,
    HAS_BIAS: tl.constexpr, ONE_CANDIDATE: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    PADDED: tl.constexpr, PADDED_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = ``weight_scale`` silu(alpha q kᵀ + bias) v for BLOCK_M queries."""
    head, first, begin, length = own_block(offsets, max_length, num_heads, BLOCK_M)
    if first >= length:
        return
    history = tl.maximum(length - num_candidates, 0)
    k += begin * k_t + head * k_h
    v += begin * v_t + head * v_h
    queries = first + tl.arange(0, BLOCK_M)
    own_q = load_tile(q + begin * q_t + head * q_h, queries, length, q_t, D, PADDED)
    mixed = tl.zeros([BLOCK_M, PADDED_V], tl.float32)
    ranges, blocks = keys_to_visit(first, length, history, window, first_keys, BLOCK_M, BLOCK_N)
    for block in tl.range(0, blocks):
        keys, _, seen, scores = visited(
            block, ranges, own_q, k, bias + head * bias_length, queries, length, history, window, first_keys,
            bias_length, alpha, k_t, HAS_BIAS, ONE_CANDIDATE, D, PADDED, BLOCK_N,
        )  # fmt: skip
        weights = tl.where(seen, scores * sigmoid(scores), 0.0)
        near_v = load_tile(v, keys, length, v_t, D_V, PADDED_V)
        mixed = tl.dot(weights.to(near_v.dtype), near_v, mixed, input_precision="ieee")
    own = (begin * num_heads + head) * D_V
    store_tile(out + own, mixed * weight_scale, queries, length, num_heads * D_V, D_V, PADDED_V)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, BLOCK_M=32, BLOCK_N=32)]
    tiles = [(64, 32, 4)] if key["d"] == 256 else [(128, 32, 8), (64, 64, 4), (128, 64, 8)]
    return [config(num_warps=w, num_stages=2, BLOCK_M=m, BLOCK_N=n) for m, n, w in tiles]


FORWARD = Kernel(hstu_attention_fwd_kernel, _configs)


def padded_width(d: int) -> int:
    """Columns that a head of ``d`` is held in."""
    return max(16, next_power_of_2(d))


def key_of(q: Tensor, v: Tensor, bias: Tensor | None, window: int | None) -> MetaParameters:
    """What the best config depends on; the wider of the two heads, the window to a power of two, 0 for none."""
    width = padded_width(max(q.shape[2], v.shape[2]))
    near = 0 if window is None else next_power_of_2(window)
    return {"d": width, "bytes": q.element_size(), "bias": bias is not None, "window": near}


def mask_arguments(
    bias: Tensor | None, window: int | None, first_keys: int, num_candidates: int, max_length: int
) -> tuple[int, ...]:
    """What the kernels take of the mask: numbers no larger than a row may be long, and the bias's length."""
    reach = max_length if window is None else min(window, max_length)
    mask = (max_length, reach, min(first_keys, max_length), min(num_candidates, max_length))
    return *mask, 0 if bias is None else bias.shape[1]


def constants_of(q: Tensor, v: Tensor, bias: Tensor | None, num_candidates: int) -> dict[str, Any]:
    """Constants that forward and backward share."""
    d, d_v = q.shape[2], v.shape[2]
    return {
        "HAS_BIAS": bias is not None,
        "ONE_CANDIDATE": num_candidates == 1,
        **{"D": d, "D_V": d_v, "PADDED": padded_width(d), "PADDED_V": padded_width(d_v)},
    }


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: Tensor | None,
    norm_length: int, alpha: float, window: int | None, first_keys: int, num_candidates: int, max_length: int,
) -> Tensor:  # fmt: skip
    """The output [T, H, d_v]."""
    out = _fwd_outputs(q, k, v)
    if not q.shape[0]:
        return out
    q, k, v = with_unit_stride(q), with_unit_stride(k), with_unit_stride(v)
    bias = None if bias is None else bias.contiguous()
    programs = (offsets.shape[0] - 1) * q.shape[1]
    FORWARD.launch(
        lambda c: (programs * cdiv(max_length, c["BLOCK_M"]),), q.device,
        q, k, v, offsets, q if bias is None else bias, out,
        q.shape[1], *mask_arguments(bias, window, first_keys, num_candidates, max_length), alpha, 1 / norm_length,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        key=key_of(q, v, bias, window), **constants_of(q, v, bias, num_candidates),
    )  # fmt: skip
    return out
