"""Window attention in Triton, backward: one kernel owns blocks of queries, the other blocks of keys; no atomics.

Both compute the weights again from q, k and what forward saved of each query's softmax. The first also writes delta,
the product of each query's output with its gradient, which the second needs. Weights stay as the tensor core left them:
each kernel lays its scores out so that they are the left operand of the products that follow, untransposed.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, config
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride
from mfu_kernels.tiles import LOG2E, load_tile, own_block, store_tile

from .boundary import _bwd_outputs
from .kernel import SIZES, head_constants, key_of, reach, within
from .rotation import load_rotated, store_rotated_back, turns_of


@triton.jit
def weights_again(scores, seen, highest, log_total, PRECISE: tl.constexpr):
    """The weights of forward's softmax in base 2.

    PRECISE, for fp32: the sum of both numbers would be rounded as coarsely as scores of a hundred are. The other dtypes
    round the weights more coarsely than that.
    """
    if PRECISE:
        below = (scores - highest) - log_total
    else:
        below = scores - (highest + log_total)
    return tl.exp2(tl.where(seen, below, float("-inf")))


@triton.jit(do_not_specialize=SIZES)
def window_attention_dq_kernel(
    grad, q, k, v, turns, offsets, out, levels, delta, dq,
    num_tokens, num_heads, max_length, behind, ahead, scale, grad_t, grad_h, q_t, q_h, k_t, k_h, v_t, v_h,
    Q_GRAD: tl.constexpr, ROTATED: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``delta`` [H, T] and, if Q_GRAD, ``dq`` of BLOCK_M queries."""
    head, first, begin, length = own_block(offsets, max_length, num_heads, BLOCK_M)
    if first >= length:
        return
    own = (begin * num_heads + head) * D
    queries = first + tl.arange(0, BLOCK_M)
    places, inside = head * num_tokens + begin + queries, queries < length
    dout = load_tile(grad + begin * grad_t + head * grad_h, queries, length, grad_t, D, PADDED)
    mixed = load_tile(out + own, queries, length, num_heads * D, D, PADDED)
    projection = tl.sum(dout.to(tl.float32) * mixed.to(tl.float32), 1)
    tl.store(delta + places, projection, mask=inside)
    if Q_GRAD:
        k += begin * k_t + head * k_h
        v += begin * v_t + head * v_h
        if ROTATED:
            turns += begin * D
        own_q = load_rotated(q + begin * q_t + head * q_h, turns, queries, length, q_t, D, PADDED, ROTATED)
        highest = tl.load(levels + places, mask=inside, other=0.0)[:, None]
        log_total = tl.load(levels + num_tokens.to(tl.int64) * num_heads + places, mask=inside, other=0.0)[:, None]
        earliest, end = queries - behind, tl.minimum(queries + ahead + 1, length)
        change = tl.zeros([BLOCK_M, PADDED], tl.float32)
        for start in tl.range(tl.maximum(first - behind, 0), tl.minimum(first + BLOCK_M + ahead, length), BLOCK_N):
            keys = start + tl.arange(0, BLOCK_N)
            near_k = load_rotated(k, turns, keys, length, k_t, D, PADDED, ROTATED)
            scores = tl.dot(own_q, tl.trans(near_k), input_precision="ieee")
            seen = within(tl.arange(0, BLOCK_N)[None, :], (earliest - start)[:, None], (end - start)[:, None])
            weights = weights_again(
                scores * (scale * LOG2E), seen, highest, log_total, q.dtype.element_ty == tl.float32
            )
            near_v = load_tile(v, keys, length, v_t, D, PADDED)
            dweights = tl.dot(dout, tl.trans(near_v), input_precision="ieee")
            dscores = weights * (dweights - projection[:, None])
            change = tl.dot(dscores.to(near_k.dtype), near_k, change, input_precision="ieee")
        store_rotated_back(dq + own, change * scale, turns, queries, length, num_heads * D, D, PADDED, ROTATED)


@triton.jit(do_not_specialize=SIZES)
def window_attention_dkv_kernel(
    grad, q, k, v, turns, offsets, levels, delta, dk, dv,
    num_tokens, num_heads, max_length, behind, ahead, scale, grad_t, grad_h, q_t, q_h, k_t, k_h, v_t, v_h,
    K_GRAD: tl.constexpr, V_GRAD: tl.constexpr, ROTATED: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``dk`` and ``dv``, as far as they are needed, of BLOCK_N keys; scores are transposed, [keys, queries]."""
    head, first, begin, length = own_block(offsets, max_length, num_heads, BLOCK_N)
    if first >= length:
        return
    grad += begin * grad_t + head * grad_h
    q += begin * q_t + head * q_h
    levels += head * num_tokens + begin
    delta += head * num_tokens + begin
    if ROTATED:
        turns += begin * D
    keys = first + tl.arange(0, BLOCK_N)
    earliest = keys - ahead
    end = tl.where(keys < length, keys + behind + 1, earliest)  # keys behind the row's end are seen by none
    own_k = load_rotated(k + begin * k_t + head * k_h, turns, keys, length, k_t, D, PADDED, ROTATED)
    if K_GRAD:
        own_v = load_tile(v + begin * v_t + head * v_h, keys, length, v_t, D, PADDED)
        k_change = tl.zeros([BLOCK_N, PADDED], tl.float32)
    if V_GRAD:
        v_change = tl.zeros([BLOCK_N, PADDED], tl.float32)
    for start in tl.range(tl.maximum(first - ahead, 0), tl.minimum(first + BLOCK_N + behind, length), BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        near_q = load_rotated(q, turns, queries, length, q_t, D, PADDED, ROTATED)
        scores = tl.dot(own_k, tl.trans(near_q), input_precision="ieee")
        inside = queries < length
        highest = tl.load(levels + queries, mask=inside, other=0.0)[None, :]
        log_total = tl.load(levels + num_tokens.to(tl.int64) * num_heads + queries, mask=inside, other=0.0)[None, :]
        seen = within(queries[None, :], earliest[:, None], end[:, None])
        weights = weights_again(scores * (scale * LOG2E), seen, highest, log_total, q.dtype.element_ty == tl.float32)
        dout = load_tile(grad, queries, length, grad_t, D, PADDED)
        if V_GRAD:
            v_change = tl.dot(weights.to(dout.dtype), dout, v_change, input_precision="ieee")
        if K_GRAD:
            projection = tl.load(delta + queries, mask=inside, other=0.0)
            dweights = tl.dot(own_v, tl.trans(dout), input_precision="ieee")
            dscores = weights * (dweights - projection[None, :])
            k_change = tl.dot(dscores.to(near_q.dtype), near_q, k_change, input_precision="ieee")
    own = (begin * num_heads + head) * D
    if V_GRAD:
        store_tile(dv + own, v_change, keys, length, num_heads * D, D, PADDED)
    if K_GRAD:
        store_rotated_back(dk + own, k_change * scale, turns, keys, length, num_heads * D, D, PADDED, ROTATED)


def _dq_configs(key: MetaParameters) -> Sequence[triton.Config]:
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, BLOCK_M=32, BLOCK_N=32)]
    tiles = [(64, 32, 4)] if key["d"] == 256 else [(64, 32, 4), (64, 64, 4), (128, 32, 8)]
    return [config(num_warps=w, num_stages=2, BLOCK_M=m, BLOCK_N=n) for m, n, w in tiles]


def _dkv_configs(key: MetaParameters) -> Sequence[triton.Config]:
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, BLOCK_M=32, BLOCK_N=32)]
    tiles = [(32, 64, 8)] if key["d"] == 256 else [(32, 64, 4), (16, 64, 4), (32, 128, 8)]
    return [config(num_warps=w, num_stages=2, BLOCK_M=m, BLOCK_N=n) for m, n, w in tiles]


DQ = Kernel(window_attention_dq_kernel, _dq_configs)
DKV = Kernel(window_attention_dkv_kernel, _dkv_configs)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, angles: Tensor | None, out: Tensor, levels: Tensor,
    window: int | None, causal: bool, scale: float, max_length: int, q_grad: bool, k_grad: bool, v_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, as far as they are needed."""
    dq, dk, dv = _bwd_outputs(grad, q, k, v, q_grad, k_grad, v_grad)
    num_tokens, num_heads, d = q.shape
    if not num_tokens:
        return dq, dk, dv
    grad, q, k, v = (with_unit_stride(t) for t in (grad, q, k, v))
    turns = None if angles is None else turns_of(angles, q.dtype)
    delta, num_rows = levels.new_empty(num_heads, num_tokens), offsets.shape[0] - 1
    sizes = (num_tokens, num_heads, max_length, *reach(window, causal, max_length), scale)
    strides = (*grad.stride()[:2], *q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
    key, constants = key_of(q, angles is not None, window), head_constants(d, angles is not None)
    if q_grad or k_grad:
        DQ.launch(
            lambda c: (num_rows * num_heads * triton.cdiv(max_length, c["BLOCK_M"]),), q.device,
            grad, q, k, v, turns, offsets, out, levels, delta, dq, *sizes, *strides,
            key=key, Q_GRAD=q_grad, **constants,
        )  # fmt: skip
    if k_grad or v_grad:
        DKV.launch(
            lambda c: (num_rows * num_heads * triton.cdiv(max_length, c["BLOCK_N"]),), q.device,
            grad, q, k, v, turns, offsets, levels, delta, dk, dv, *sizes, *strides,
            key=key, K_GRAD=k_grad, V_GRAD=v_grad, **constants,
        )  # fmt: skip
    return dq, dk, dv
