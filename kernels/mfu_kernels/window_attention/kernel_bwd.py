"""Window attention in Triton, backward: one kernel owns blocks of queries, the other blocks of keys; no atomics.

On Hopper, `kernel_sm90` has one kernel that does what both do: a form of the second, and the first is left out then.

Both compute the weights again from q, k and what forward saved of each query's softmax. The first also writes delta,
the product of each query's output with its gradient, beside the level that the query's weights are relative to: the
second reads both for every query and column of its tiles, as one number of 8 bytes. Weights stay as the tensor core
left them: each kernel lays its scores out so that they are the left operand of the products that follow, untransposed.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.boundary import apart
from mfu_kernels.formulas import repeated_in_two_kernels
from mfu_kernels.launching import Kernel, config, current, for_hopper
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride
from mfu_kernels.tiles import LOG2E, load_tile, own_block, store_tile

from . import kernel_sm90
from .boundary import _bwd_outputs
from .kernel import SIZES, constants_of, key_of, only_near, reach


@triton.jit
def _store_turned(
    x, change, turns, first_token, rows, num_rows, stride,
    D: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Write a gradient to ``x``; where there are ``turns``, its halves by a cosine and a sine of each pair of them."""
    x += first_token * stride
    if turns is None:
        store_tile(x, change, rows, num_rows, stride, D, PADDED, PARTS)
    else:
        HALF: tl.constexpr = D // 2
        turns += first_token * D
        cos = load_tile(turns, rows, num_rows, D, HALF, PADDED // 2).to(tl.float32)
        sin = load_tile(turns + HALF, rows, num_rows, D, HALF, PADDED // 2).to(tl.float32)
        first, second = change.reshape(change.shape[0], 2, PADDED // 2).permute(0, 2, 1).split()
        store_tile(x, first * cos - second * sin, rows, num_rows, stride, HALF, PADDED // 2)
        store_tile(x + HALF, first * sin + second * cos, rows, num_rows, stride, HALF, PADDED // 2)


@triton.jit(do_not_specialize=SIZES)
def window_attention_dq_kernel(
    grad, q, k, v, offsets, out, levels, softmax, dq, dk, dv,
    turns, num_tokens, max_length, behind, ahead, scale, grad_h, q_h, k_h, v_h,
    Q_GRAD: tl.constexpr, PRECISE: tl.constexpr, NUM_HEADS: tl.constexpr,
    GRAD_T: tl.constexpr, Q_T: tl.constexpr, K_T: tl.constexpr, V_T: tl.constexpr, DX_T: tl.constexpr,
    D: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``softmax`` [H, T, 2], level and delta, and, if Q_GRAD, ``dq`` of BLOCK_M queries."""
    head, first, begin, length = own_block(offsets, max_length, NUM_HEADS, BLOCK_M)
    if first >= length:
        return
    m, n, first_token = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), begin + first
    own, num_queries = (first_token * NUM_HEADS + head) * D, length - first
    dout = load_tile(grad + first_token * GRAD_T + head * grad_h, m, num_queries, GRAD_T, D, PADDED)
    mixed = load_tile(out + own, m, num_queries, NUM_HEADS * D, D, PADDED)
    projection = tl.sum(dout.to(tl.float32) * mixed.to(tl.float32), 1)
    places, inside = head * num_tokens + first_token + m, m < num_queries
    highest = tl.load(levels + places, mask=inside, other=0.0)
    tl.store(softmax + 2 * places, highest, mask=inside)
    tl.store(softmax + 2 * places + 1, projection, mask=inside)
    if Q_GRAD:
        k += head * k_h
        v += head * v_h
        own_q = load_tile(q + first_token * Q_T + head * q_h, m, num_queries, Q_T, D, PADDED, PARTS)
        if PRECISE:
            log_total = tl.load(levels + num_tokens.to(tl.int64) * NUM_HEADS + places, mask=inside, other=0.0)
        change = tl.zeros([BLOCK_M, PADDED], tl.float32)
        for start in tl.range(tl.maximum(first - behind, 0), tl.minimum(first + BLOCK_M + ahead, length), BLOCK_N):
            near_k = load_tile(k + (begin + start) * K_T, n, length - start, K_T, D, PADDED, PARTS)
            scores = tl.dot(own_q, tl.trans(near_k), input_precision="ieee")
            below = scores * (scale * LOG2E) - highest[:, None]
            if PRECISE:
                below -= log_total[:, None]
            weights = tl.exp2(only_near(below, start, first, behind, ahead, length, BLOCK_M, BLOCK_N))
            near_v = load_tile(v + (begin + start) * V_T, n, length - start, V_T, D, PADDED)
            dweights = tl.dot(dout, tl.trans(near_v), input_precision="ieee")
            dscores = weights * (dweights - projection[:, None])
            change = tl.dot(dscores.to(near_k.dtype), near_k, change, input_precision="ieee")
        _store_turned(dq + head * D, change * scale, turns, first_token, m, num_queries, DX_T, D, PADDED, PARTS)


@triton.jit(do_not_specialize=SIZES)
def window_attention_dkv_kernel(
    grad, q, k, v, offsets, out, levels, softmax, dq, dk, dv,
    turns, num_tokens, max_length, behind, ahead, scale, grad_h, q_h, k_h, v_h,
    K_GRAD: tl.constexpr, V_GRAD: tl.constexpr, PRECISE: tl.constexpr, NUM_HEADS: tl.constexpr,
    GRAD_T: tl.constexpr, Q_T: tl.constexpr, K_T: tl.constexpr, V_T: tl.constexpr, DX_T: tl.constexpr,
    D: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """``dk`` and ``dv``, as far as they are needed, of BLOCK_N keys; scores are transposed, [keys, queries].

    A query behind the row's end adds nothing: its weights are masked. So its level and delta, which are the next row's
    or zeros, are read without a mask.
    """
    head, first, begin, length = own_block(offsets, max_length, NUM_HEADS, BLOCK_N)
    if first >= length:
        return
    grad += head * grad_h
    q += head * q_h
    pairs = softmax.to(tl.pointer_type(tl.int64)) + (head * num_tokens + begin + tl.arange(0, BLOCK_M))
    m, n, first_token = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), begin + first
    own_k = load_tile(k + first_token * K_T + head * k_h, n, length - first, K_T, D, PADDED, PARTS)
    if K_GRAD:
        own_v = load_tile(v + first_token * V_T + head * v_h, n, length - first, V_T, D, PADDED)
        k_change = tl.zeros([BLOCK_N, PADDED], tl.float32)
    if V_GRAD:
        v_change = tl.zeros([BLOCK_N, PADDED], tl.float32)
    for start in tl.range(tl.maximum(first - ahead, 0), tl.minimum(first + BLOCK_N + behind, length), BLOCK_M):
        near_q = load_tile(q + (begin + start) * Q_T, m, length - start, Q_T, D, PADDED, PARTS)
        scores = tl.dot(own_k, tl.trans(near_q), input_precision="ieee")
        pair = tl.load(pairs + start)
        level = pair.to(tl.int32).to(tl.float32, bitcast=True)
        below = scores * (scale * LOG2E) - level[None, :]
        if PRECISE:
            places = (num_tokens.to(tl.int64) * NUM_HEADS + head * num_tokens) + (begin + start) + m
            below -= tl.load(levels + places, mask=m < length - start, other=0.0)[None, :]
        weights = tl.exp2(only_near(below, start, first, ahead, behind, length, BLOCK_N, BLOCK_M))
        dout = load_tile(grad + (begin + start) * GRAD_T, m, length - start, GRAD_T, D, PADDED)
        if V_GRAD:
            v_change = tl.dot(weights.to(dout.dtype), dout, v_change, input_precision="ieee")
        if K_GRAD:
            projection = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
            dweights = tl.dot(own_v, tl.trans(dout), input_precision="ieee")
            dscores = weights * (dweights - projection[None, :])
            k_change = tl.dot(dscores.to(near_q.dtype), near_q, k_change, input_precision="ieee")
    if V_GRAD:
        store_tile(dv + first_token * DX_T + head * D, v_change, n, length - first, DX_T, D, PADDED)
    if K_GRAD:
        _store_turned(dk + head * D, k_change * scale, turns, first_token, n, length - first, DX_T, D, PADDED, PARTS)


def _dq_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """On an H200 with d = 64 and a window of 100, 32 keys a step in three stages (104 registers, four programs a
    multiprocessor) beat two stages by 10 % and 64 keys (148, three) by 11 %. With d = 128 two stages leave room for
    three programs of 155 registers, three stages for two.
    """
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, BLOCK_M=32, BLOCK_N=32)]
    tiles = [(64, 32, 4)] if key["d"] == 256 else [(64, 32, 4), (64, 64, 4), (128, 32, 8), (128, 64, 8)]
    depths = (2, 3) if int(key["d"]) >= 128 else (3, 2)
    return [config(num_warps=w, num_stages=stages, BLOCK_M=m, BLOCK_N=n) for stages in depths for m, n, w in tiles]


def _dkv_configs(key: MetaParameters) -> Sequence[triton.Config]:
    """32 queries a step, where that does not spill.

    d = 64 on sm_90: 160 registers, three programs a multiprocessor; 255 on sm_80. d = 128: 16 queries a step. Where
    Hopper has a form that walks, it is first: on an H200 the backward took 3.0 in place of 4.3 ms (d = 64, a window of
    100 both ways) and 2.8 in place of 5.3 (d = 128, 128 behind).
    """
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, BLOCK_M=32, BLOCK_N=32)]
    tiles = [(32, 64, 4), (16, 64, 4), (64, 64, 4), (32, 128, 8), (64, 128, 8)]
    if key["d"] == 128:
        tiles = [(16, 64, 4), (32, 64, 4), (32, 128, 8), (64, 128, 8)]
    elif key["d"] == 256:
        tiles = [(32, 64, 8)]
    plain = [config(num_warps=w, num_stages=stages, BLOCK_M=m, BLOCK_N=n) for stages in (3, 2) for m, n, w in tiles]
    return [*(kernel_sm90.configs(int(key["d"]), int(key["seen"])) if "seen" in key else ()), *plain]


MOST_ROWS = 128  # of a block of queries
DQ = Kernel(window_attention_dq_kernel, _dq_configs)
DKV = Kernel(
    window_attention_dkv_kernel,
    _dkv_configs,
    forms={"WALKERS": (kernel_sm90.window_attention_bwd_sm90_kernel, kernel_sm90.arguments)},
)


def _softmax(levels: Tensor, q: Tensor) -> Tensor:
    """[H, T, 2] and room for a block behind: what is read there for queries behind the last head's last row.

    It is 0, for NaN would pass a weight of 0.
    """
    num_tokens, num_heads, _ = q.shape
    softmax = levels.new_empty(num_heads * num_tokens + MOST_ROWS, 2)
    softmax[num_heads * num_tokens :] = 0.0
    return softmax


def _key_for_keys(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, window: int | None, behind: int, ahead: int, needed: Sequence[bool]
) -> MetaParameters:
    """The key of the kernel for keys, which on Hopper may be the one for all."""
    key = key_of(q, window)
    if for_hopper(q.device) and all(needed) and kernel_sm90.fits(grad, q, k, v, behind, ahead):
        key = {**key, "seen": kernel_sm90.blocks_seen(behind, ahead)}
    return key


def _walks(key: MetaParameters, device: torch.device) -> bool:
    """Whether the kernel for keys makes the gradient of queries, too."""
    with current(device):
        return "WALKERS" in DKV.choose(key, device).kwargs


def repeated_products(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, causal: bool, max_length: int, needed: tuple[bool, bool, bool]
) -> int:
    """How many products the backward makes again, if its gradient lies as q does."""
    key = _key_for_keys(q, q, k, v, window, *reach(window, causal, max_length), needed)
    return 1 if _walks(key, q.device) else repeated_in_two_kernels(*needed)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, out: Tensor, levels: Tensor,
    turns: Tensor | None, window: int | None, causal: bool, scale: float, max_length: int,
    q_grad: bool, k_grad: bool, v_grad: bool,
) -> Tensor:  # fmt: skip
    """The needed ones of the gradients of q, k and v, side by side, [T, n, H, d]."""
    needed = (q_grad, k_grad, v_grad)
    grads = _bwd_outputs(grad, q, *needed)
    num_tokens, num_heads, _ = q.shape
    if not grads.numel():
        return grads
    dq, dk, dv = apart(grads, needed)
    grad, q, k, v = (with_unit_stride(t) for t in (grad, q, k, v))
    num_rows = offsets.shape[0] - 1
    behind, ahead = reach(window, causal, max_length)
    key, for_keys = key_of(q, window), _key_for_keys(grad, q, k, v, window, behind, ahead, needed)
    walks = _walks(for_keys, q.device)
    arguments = (
        *(grad, q, k, v, offsets, out, levels, None if walks else _softmax(levels, q), dq, dk, dv, turns),
        *(num_tokens, max_length, behind, ahead, scale, *(t.stride(1) for t in (grad, q, k, v))),
    )
    constants = {"GRAD_T": grad.stride(0), "DX_T": grads.stride(0), **constants_of(q, k, v)}
    if not walks:
        DQ.launch(
            lambda c: (num_rows * num_heads * triton.cdiv(max_length, c["BLOCK_M"]),), q.device,
            *arguments, key=key, Q_GRAD=q_grad, **constants,
        )  # fmt: skip
    if k_grad or v_grad:
        DKV.launch(
            lambda c: (num_rows * num_heads * (1 if walks else triton.cdiv(max_length, c["BLOCK_N"])),), q.device,
            *arguments, key=for_keys, K_GRAD=k_grad, V_GRAD=v_grad, **constants,
        )  # fmt: skip
    return grads
