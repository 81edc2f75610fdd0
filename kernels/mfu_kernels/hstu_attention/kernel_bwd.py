"""HSTU attention in Triton, backward: one kernel owns blocks of queries, the other blocks of keys; no atomics.

Both compute the scores again. Weights stay as the tensor core left them: each kernel lays its scores out so that they
are the left operand of the products that follow, untransposed. The bias has a kernel of its own, in `kernel_bias`.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, cdiv, config
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride
from mfu_kernels.tiles import load_tile, own_block, store_tile

from .boundary import _bwd_outputs
from .kernel import SIZES, constants_of, key_of, mask_arguments, scores_of, sigmoid, silu_backward, visited
from .kernel_bias import bias_gradient
from .mask import keys_to_visit, last_query, seen_by


@triton.jit(do_not_specialize=SIZES)
def hstu_attention_dq_kernel(
    grad, q, k, v, offsets, bias, dq,
    num_heads, max_length, window, first_keys, num_candidates, bias_length, alpha, weight_scale,
    grad_t, grad_h, q_t, q_h, k_t, k_h, v_t, v_h,
    HAS_BIAS: tl.constexpr, ONE_CANDIDATE: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    PADDED: tl.constexpr, PADDED_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``dq`` of BLOCK_M queries."""
    head, first, begin, length = own_block(offsets, max_length, num_heads, BLOCK_M)
    if first >= length:
        return
    history = tl.maximum(length - num_candidates, 0)
    k += begin * k_t + head * k_h
    v += begin * v_t + head * v_h
    queries = first + tl.arange(0, BLOCK_M)
    own_q = load_tile(q + begin * q_t + head * q_h, queries, length, q_t, D, PADDED)
    dout = load_tile(grad + begin * grad_t + head * grad_h, queries, length, grad_t, D_V, PADDED_V)
    change = tl.zeros([BLOCK_M, PADDED], tl.float32)
    ranges, blocks = keys_to_visit(first, length, history, window, first_keys, BLOCK_M, BLOCK_N)
    for block in tl.range(0, blocks):
        keys, near_k, seen, scores = visited(
            block, ranges, own_q, k, bias + head * bias_length, queries, length, history, window, first_keys,
            bias_length, alpha, k_t, HAS_BIAS, ONE_CANDIDATE, D, PADDED, BLOCK_N,
        )  # fmt: skip
        near_v = load_tile(v, keys, length, v_t, D_V, PADDED_V)
        dweights = tl.dot(dout, tl.trans(near_v), input_precision="ieee")
        dscores = silu_backward(dweights, scores, sigmoid(scores), seen)
        change = tl.dot(dscores.to(near_k.dtype), near_k, change, input_precision="ieee")
    own = (begin * num_heads + head) * D
    store_tile(dq + own, change * (alpha * weight_scale), queries, length, num_heads * D, D, PADDED)


@triton.jit(do_not_specialize=SIZES)
def hstu_attention_dkv_kernel(
    grad, q, k, v, offsets, bias, dk, dv,
    num_heads, max_length, window, first_keys, num_candidates, bias_length, alpha, weight_scale,
    grad_t, grad_h, q_t, q_h, k_t, k_h, v_t, v_h,
    K_GRAD: tl.constexpr, V_GRAD: tl.constexpr,
    HAS_BIAS: tl.constexpr, ONE_CANDIDATE: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    PADDED: tl.constexpr, PADDED_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``dk`` and ``dv``, as far as they are needed, of BLOCK_N keys; scores are transposed, [keys, queries]."""
    head, first, begin, length = own_block(offsets, max_length, num_heads, BLOCK_N)
    if first >= length:
        return
    history = tl.maximum(length - num_candidates, 0)
    grad += begin * grad_t + head * grad_h
    q += begin * q_t + head * q_h
    keys = first + tl.arange(0, BLOCK_N)
    own_k = load_tile(k + begin * k_t + head * k_h, keys, length, k_t, D, PADDED)
    if K_GRAD:
        own_v = load_tile(v + begin * v_t + head * v_h, keys, length, v_t, D_V, PADDED_V)
        k_change = tl.zeros([BLOCK_N, PADDED], tl.float32)
    if V_GRAD:
        v_change = tl.zeros([BLOCK_N, PADDED_V], tl.float32)
    for start in tl.range(first, last_query(first, length, history, window, first_keys, BLOCK_N), BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        near_q = load_tile(q, queries, length, q_t, D, PADDED)
        products = tl.dot(own_k, tl.trans(near_q), input_precision="ieee")
        seen = seen_by(queries[None, :], keys[:, None], length, history, window, first_keys, ONE_CANDIDATE)
        scores = scores_of(
            products, bias + head * bias_length, queries[None, :], keys[:, None], seen, history, bias_length, alpha,
            HAS_BIAS,
        )  # fmt: skip
        gate = sigmoid(scores)
        dout = load_tile(grad, queries, length, grad_t, D_V, PADDED_V)
        if V_GRAD:
            weights = tl.where(seen, scores * gate, 0.0)
            v_change = tl.dot(weights.to(dout.dtype), dout, v_change, input_precision="ieee")
        if K_GRAD:
            dweights = tl.dot(own_v, tl.trans(dout), input_precision="ieee")
            dscores = silu_backward(dweights, scores, gate, seen)
            k_change = tl.dot(dscores.to(near_q.dtype), near_q, k_change, input_precision="ieee")
    token = begin * num_heads + head
    if V_GRAD:
        store_tile(dv + token * D_V, v_change * weight_scale, keys, length, num_heads * D_V, D_V, PADDED_V)
    if K_GRAD:
        store_tile(dk + token * D, k_change * (alpha * weight_scale), keys, length, num_heads * D, D, PADDED)


def _dq_configs(key: MetaParameters) -> Sequence[triton.Config]:
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, BLOCK_M=32, BLOCK_N=32)]
    tiles = [(64, 32, 4)] if key["d"] == 256 else [(64, 32, 4), (64, 64, 4), (128, 32, 8)]
    return [config(num_warps=w, num_stages=2, BLOCK_M=m, BLOCK_N=n) for m, n, w in tiles]


def _dkv_configs(key: MetaParameters) -> Sequence[triton.Config]:
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, BLOCK_M=32, BLOCK_N=32)]
    tiles = [(32, 64, 4), (16, 64, 4), (32, 128, 8)]
    if key["d"] == 256:
        tiles = [(16, 64, 8), (32, 32, 8), (32, 64, 8)]
    if key["bias"] and int(key["d"]) >= 128:  # whose addresses spill with the tile that is else the first
        tiles[:2] = tiles[1::-1]
    return [config(num_warps=w, num_stages=2, BLOCK_M=m, BLOCK_N=n) for m, n, w in tiles]


DQ = Kernel(hstu_attention_dq_kernel, _dq_configs)
DKV = Kernel(hstu_attention_dkv_kernel, _dkv_configs)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: Tensor | None,
    norm_length: int, alpha: float, window: int | None, first_keys: int, num_candidates: int, max_length: int,
    q_grad: bool, k_grad: bool, v_grad: bool, bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and the bias, as far as they are needed."""
    dq, dk, dv, dbias = _bwd_outputs(grad, q, k, v, offsets, bias, q_grad, k_grad, v_grad, bias_grad)
    if not q.shape[0]:
        return dq, dk, dv, dbias.zero_()
    grad, q, k, v = (with_unit_stride(t) for t in (grad, q, k, v))
    bias = None if bias is None else bias.contiguous()
    programs = (offsets.shape[0] - 1) * q.shape[1]
    inputs = (grad, q, k, v, offsets, q if bias is None else bias)
    mask = mask_arguments(bias, window, first_keys, num_candidates, max_length)
    strides = (*grad.stride()[:2], *q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
    numbers = (q.shape[1], *mask, alpha, 1 / norm_length, *strides)
    key, constants = key_of(q, v, bias, window), constants_of(q, v, bias, num_candidates)
    if q_grad:
        DQ.launch(
            lambda c: (programs * cdiv(max_length, c["BLOCK_M"]),), q.device,
            *inputs, dq, *numbers, key=key, **constants,
        )  # fmt: skip
    if k_grad or v_grad:
        DKV.launch(
            lambda c: (programs * cdiv(max_length, c["BLOCK_N"]),), q.device,
            *inputs, dk, dv, *numbers, key=key, K_GRAD=k_grad, V_GRAD=v_grad, **constants,
        )  # fmt: skip
    if bias is not None and bias_grad:
        dbias.copy_(bias_gradient(inputs, numbers, mask, key, constants))
    return dq, dk, dv, dbias
