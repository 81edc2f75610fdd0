"""A tile of queries against the tiles of keys in its window, of which a ring in shared memory holds some; in Gluon."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from mfu_kernels.hopper import TILE, halves_of, of_product, whole_of

_TILE = gl.constexpr(TILE)
_LOWEST = gl.constexpr(-3e38)  # of levels; finite, so that a query which has seen no key yet makes no NaN


@gluon.jit
def _half_within(scores, apart, behind, ahead, kept, none):
    """The same for half of a tile's keys, which are ``apart`` from the queries."""
    layout: gl.constexpr = scores.type.layout
    HALF: gl.constexpr = scores.shape[1]
    rows = gl.arange(0, _TILE, gl.SliceLayout(1, layout)) + none
    columns = gl.arange(0, HALF, gl.SliceLayout(0, layout)) + none
    if apart < _TILE - 1 - behind:
        scores = gl.where(columns[None, :] >= (rows - (behind + apart))[:, None], scores, float("-inf"))
    if (apart + HALF - 1 > ahead) | (kept < HALF):
        last = gl.minimum(rows + (ahead - apart), kept - 1)
        scores = gl.where(columns[None, :] <= last[:, None], scores, float("-inf"))
    return scores


@gluon.jit
def _within(scores, apart, behind, ahead, kept, none):
    """Scores of queries with the keys ``apart`` from them, -inf outside the window and from key ``kept`` on."""
    layout: gl.constexpr = scores.type.layout
    first, second = halves_of(scores)
    first = _half_within(first, apart, behind, ahead, kept, none)
    second = _half_within(second, apart + _TILE // 2, behind, ahead, kept - _TILE // 2, none)
    return gl.convert_layout(whole_of(first, second), layout)


@gluon.jit
def _weigh(scores, level, higher, total, mixed, score_scale, DTYPE: gl.constexpr):
    """The weights of a tile of scores, for a product; and sums that were relative to ``level``, to ``higher``."""
    weights = gl.exp2(scores * score_scale - higher[:, None])
    fade = gl.exp2(level - higher)
    total = total * gl.convert_layout(fade, gl.SliceLayout(1, total.type.layout))[:, None]
    mixed = mixed * gl.convert_layout(fade, gl.SliceLayout(1, mixed.type.layout))[:, None]
    return gl.convert_layout(weights.to(DTYPE), gl.DotOperandLayout(0, mixed.type.layout, 2)), total, mixed


@gluon.jit
def attend(
    own_q, i, before, tiles, length, window, shared, BEHIND: gl.constexpr, AHEAD: gl.constexpr,
):  # fmt: skip
    """The i-th tile of queries of a row against the keys that it sees: its levels, sums of weights, and sums of values.

    A tile's scores are made while the values before are summed, and masked meanwhile.
    """
    _, keys, values, _, ready, _, ones = shared
    behind, ahead, score_scale = window
    SLOTS: gl.constexpr = keys.shape[0]
    DIM: gl.constexpr = keys.shape[2]
    LAPS: gl.constexpr = ready.shape[0]
    SUMS: gl.constexpr = ones.shape[1]
    scores_layout: gl.constexpr = of_product(_TILE)
    scores = gl.zeros([_TILE, _TILE], gl.float32, scores_layout)
    total = gl.zeros([_TILE, SUMS], gl.float32, of_product(SUMS))
    mixed = gl.zeros([_TILE, DIM], gl.float32, of_product(DIM))
    level = gl.full([_TILE], _LOWEST, gl.float32, gl.SliceLayout(1, scores_layout))
    none = (before + i) >> 30  # as `places_of` has it
    begin, last = gl.maximum(i - BEHIND, 0), gl.minimum(i + AHEAD, tiles - 1)
    columns = keys.index((before + begin) % SLOTS).permute([1, 0])
    scores = warpgroup_mma(own_q, columns, scores, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, [scores])
    scores = _within(scores, (begin - i) * _TILE, behind, ahead, length - begin * _TILE, none)
    higher = gl.maximum(level, gl.max(scores, 1) * score_scale)
    for j in range(begin, last):
        weights, total, mixed = _weigh(scores, level, higher, total, mixed, score_scale, keys.dtype)
        level = higher
        number = before + j + 1
        if j >= i:
            mbarrier.wait(ready.index(number % LAPS), (number // LAPS) & 1)
        columns = keys.index(number % SLOTS).permute([1, 0])
        scores = warpgroup_mma(own_q, columns, scores, use_acc=False, is_async=True)
        mixed = warpgroup_mma(weights, values.index((before + j) % SLOTS), mixed, is_async=True)
        total = warpgroup_mma(weights, ones, total, is_async=True)
        scores = warpgroup_mma_wait(2, [scores])
        scores = _within(scores, (j + 1 - i) * _TILE, behind, ahead, length - (j + 1) * _TILE, none)
        higher = gl.maximum(level, gl.max(scores, 1) * score_scale)
        mixed, total = warpgroup_mma_wait(0, [mixed, total])
    weights, total, mixed = _weigh(scores, level, higher, total, mixed, score_scale, keys.dtype)
    mixed = warpgroup_mma(weights, values.index((before + last) % SLOTS), mixed, is_async=True)
    total = warpgroup_mma(weights, ones, total, is_async=True)
    mixed, total = warpgroup_mma_wait(0, [mixed, total])
    total = gl.convert_layout(gl.max(total, 1), gl.SliceLayout(1, scores_layout))  # all its columns are the same
    return higher, gl.where(total > 0, total, 1.0), mixed  # 0: of queries behind the row's end
