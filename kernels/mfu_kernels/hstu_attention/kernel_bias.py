"""The gradient of HSTU's bias: for each distance, the sum of the scores' gradients of all pairs that far apart.

Tiles on one diagonal of blocks hold the same distances at the same places. So a program stays on one diagonal of one
head, adds up whole tiles over its share of the rows, and writes one tile; the shares are added after, and each tile's
diagonals summed, in a fixed order, without atomics. Candidates all stand where the history ends: for them a tile is
placed by its distance from there, and a distance is a column of it. This computes the scores and the weights' gradient
once more, two products besides those of the other kernels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, capability, cdiv, config
from mfu_kernels.modes import MetaParameters
from mfu_kernels.tiles import load_tile

from .kernel import SIZES, scores_of, sigmoid, silu_backward
from .mask import seen_by

PROGRAMS = 1024  # about as many share the work: several for each multiprocessor
MIN_ROWS = 2  # rows a program at least, as far as there are as many


@triton.jit(do_not_specialize=(*SIZES, "num_rows", "num_diagonals"))
def hstu_attention_dbias_kernel(
    grad, q, k, v, offsets, bias, shares,
    num_heads, max_length, window, first_keys, num_candidates, bias_length, alpha, weight_scale,
    grad_t, grad_h, q_t, q_h, k_t, k_h, v_t, v_h, num_rows, num_diagonals,
    CANDIDATES: tl.constexpr,
    HAS_BIAS: tl.constexpr, ONE_CANDIDATE: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    PADDED: tl.constexpr, PADDED_V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One share [BLOCK, BLOCK] of the tiles on one diagonal: those of CANDIDATES behind the first, or all others."""
    diagonal = tl.program_id(0) % num_diagonals
    head = ((tl.program_id(0) // num_diagonals) % num_heads).to(tl.int64)
    group, num_groups = (
        tl.program_id(0) // (num_diagonals * num_heads),
        tl.num_programs(0) // (num_diagonals * num_heads),
    )
    places = tl.arange(0, BLOCK)
    share = tl.zeros([BLOCK, BLOCK], tl.float32)
    for row in range(group, num_rows, num_groups):
        begin = tl.load(offsets + row).to(tl.int64)
        length = (tl.load(offsets + row + 1) - begin).to(tl.int32)
        history = tl.maximum(length - num_candidates, 0)
        if CANDIDATES:
            start, end = history + 1, length
        else:
            start, end = diagonal * BLOCK, tl.minimum(history + 1, length)
            if diagonal == 0:
                end = length  # candidates see themselves
            elif diagonal * BLOCK - BLOCK >= window:  # all of its pairs are farther apart than the window
                end = tl.minimum(end, start + tl.cdiv(first_keys, BLOCK) * BLOCK)
        for first in tl.range(start, end, BLOCK):
            queries = first + places
            keys = (history - (diagonal + 1) * BLOCK if CANDIDATES else first - diagonal * BLOCK) + places
            rows = tl.where(keys >= 0, keys, length)  # a row's first keys may begin within a tile
            near_q = load_tile(q + begin * q_t + head * q_h, queries, length, q_t, D, PADDED)
            near_k = load_tile(k + begin * k_t + head * k_h, rows, length, k_t, D, PADDED)
            products = tl.dot(near_q, tl.trans(near_k), input_precision="ieee")
            seen = seen_by(queries[:, None], rows[None, :], length, history, window, first_keys, ONE_CANDIDATE)
            if CANDIDATES:
                seen = seen & (rows < history)[None, :]
            else:
                seen = seen & ((queries <= history)[:, None] | (queries[:, None] == rows[None, :]))
            scores = scores_of(
                products, bias + head * bias_length, queries[:, None], rows[None, :], seen, history, bias_length, alpha,
                HAS_BIAS,
            )  # fmt: skip
            dout = load_tile(grad + begin * grad_t + head * grad_h, queries, length, grad_t, D_V, PADDED_V)
            near_v = load_tile(v + begin * v_t + head * v_h, rows, length, v_t, D_V, PADDED_V)
            dweights = tl.dot(dout, tl.trans(near_v), input_precision="ieee")
            share += silu_backward(dweights, scores, sigmoid(scores), seen)
    tile = shares + tl.program_id(0).to(tl.int64) * (BLOCK * BLOCK)
    tl.store(tile + places[:, None] * BLOCK + places[None, :], share * weight_scale)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """At d = 128 in bf16 programs spill once their loads are pipelined: those of 4 warps on sm_90, of 8 on sm_100.

    At d = 256 two stages are more than any multiprocessor's shared memory.
    """
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1)]
    if key["d"] == 256:
        return [config(num_warps=8, num_stages=1)]
    stages = (1, 2) if capability() >= 100 and int(key["d"]) >= 128 else (2, 1)
    return [config(num_warps=8, num_stages=depth) for depth in stages]


BIAS = Kernel(hstu_attention_dbias_kernel, _configs)


def bias_gradient(
    inputs: Sequence[Tensor],
    numbers: Sequence[float],
    mask: Sequence[int],
    key: MetaParameters,
    constants: Mapping[str, Any],
) -> Tensor:
    """The gradient of the bias, fp32 [H, R], from the arguments that the kernels of backward share."""
    _, q, _, _, offsets, bias = inputs
    max_length, window, first_keys, num_candidates = mask[:4]
    num_heads, num_rows, block = q.shape[1], offsets.shape[0] - 1, 32 if key["bytes"] == 4 else 64
    farthest = max_length - 1 if first_keys else min(window, max_length - 1)

    def tiles(candidates: bool, num_diagonals: int) -> Tensor:
        num_groups = min(cdiv(num_rows, MIN_ROWS), max(1, PROGRAMS // (num_diagonals * num_heads)))
        shares = q.new_empty(num_groups, num_heads, num_diagonals, block, block, dtype=torch.float32)
        BIAS.launch(
            lambda _: (num_groups * num_heads * num_diagonals,), q.device,
            *inputs, shares, *numbers, num_rows, num_diagonals,
            key=key, CANDIDATES=candidates, BLOCK=block, **constants,
        )  # fmt: skip
        return shares.sum(0)

    by_distance = _diagonal_sums(tiles(False, cdiv(farthest, block) + 1))
    if num_candidates > 1 and farthest:
        columns = tiles(True, cdiv(farthest, block)).sum(-2)  # column j is block - j farther than its tile
        by_distance[:, 1 : columns[0].numel() + 1] += columns.flip(-1).flatten(1)
    last = bias.shape[1] - 1
    by_distance = F.pad(by_distance, (0, max(0, last + 1 - by_distance.shape[1])))
    return torch.cat((by_distance[:, :last], by_distance[:, last:].sum(1, keepdim=True)), dim=1)


def _diagonal_sums(tiles: Tensor) -> Tensor:
    """Sums [H, n B] by distance of tiles [H, n, B, B], whose place (i, j) on diagonal δ is δ B + i - j apart."""
    block = tiles.shape[-1]
    # With columns reversed and rows padded to 2 B, reading rows of 2 B - 1 shifts row i by i: diagonals become columns.
    padded = F.pad(tiles.flip(-1), (0, block)).flatten(-2)
    sums = padded[..., : block * (2 * block - 1)].unflatten(-1, (block, 2 * block - 1)).sum(-2)
    from_zero = sums[..., block - 1 :].clone()
    from_zero[:, :-1, 1:] += sums[:, 1:, : block - 1]
    flat: Tensor = from_zero.flatten(1)
    return flat
