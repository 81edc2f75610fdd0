"""Which keys a query sees in HSTU's attention, for the kernels: token by token, and as ranges of tokens to visit."""

import triton
import triton.language as tl

NO_LIMIT = tl.constexpr((1 << 31) - 1)
FAR = tl.constexpr(1 << 30)


@triton.jit
def positions_of(tokens, history):
    """Where tokens of a row stand: all candidates stand where the history ends."""
    return tl.minimum(tokens, history)


@triton.jit
def seen_by(queries, keys, end, history, window, first_keys, ONE_CANDIDATE: tl.constexpr):
    """bool: whether each query, along one axis, sees each key before ``end``, along the other.

    As unsigned numbers, so that a key ahead of its query is farther away than any window. With one candidate in a row,
    every token stands where it lies, and a token sees itself as the key 0 behind it.
    """
    reach = tl.where(keys < first_keys, NO_LIMIT, window).to(tl.uint32)
    if ONE_CANDIDATE:
        behind = queries - tl.where(keys < end, keys, FAR)
        return behind.to(tl.uint32, bitcast=True) <= reach
    else:
        behind = positions_of(queries, history) - 1 - tl.where(keys < tl.minimum(end, history), keys, FAR)
        return (behind.to(tl.uint32, bitcast=True) < reach) | (queries == tl.where(keys < end, keys, -1))


@triton.jit
def keys_to_visit(first, length, history, window, first_keys, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The keys that BLOCK_M queries from ``first`` on see lie in three ranges: the first keys, those near, themselves.

    Gives what `visit` takes of them: where the first range ends, where the second begins and ends, those of the third,
    and how many blocks the first and the first two have; and how many all three have. Only candidates far behind the
    history have a third; other queries lie in their second range.
    """
    own_end = tl.minimum(first + BLOCK_M, length)
    near = tl.maximum(tl.minimum(first, history) - window, 0)
    apart = first > history
    near_end = tl.where(apart, history, own_end)
    far_end = tl.minimum(first_keys, near)
    far_blocks = tl.cdiv(far_end, BLOCK_N)
    two = far_blocks + tl.cdiv(near_end - near, BLOCK_N)
    ranges = far_end, near, near_end, first, own_end, far_blocks, two
    return ranges, two + tl.where(apart, tl.cdiv(own_end - first, BLOCK_N), 0)


@triton.jit
def visit(block, ranges, BLOCK_N: tl.constexpr):
    """First key of one of the blocks that `keys_to_visit` counts, and where its range ends."""
    far_end, near, near_end, first, own_end, far_blocks, two = ranges
    in_two = block < two
    start = tl.where(in_two, near + (block - far_blocks) * BLOCK_N, first + (block - two) * BLOCK_N)
    start = tl.where(block < far_blocks, block * BLOCK_N, start)
    return start, tl.where(block < far_blocks, far_end, tl.where(in_two, near_end, own_end))


@triton.jit
def last_query(first, length, history, window, first_keys, BLOCK_N: tl.constexpr):
    """Behind the last query that sees one of BLOCK_N keys from ``first`` on; the first of them is ``first`` itself."""
    end = tl.minimum(first + BLOCK_N, length)
    reached = tl.where(first < history, tl.minimum(end, history) - 1 + window, -1)  # farthest position that sees one
    seen_to_the_end = (reached >= history) | ((first < first_keys) & (first < history))
    return tl.where(seen_to_the_end, length, tl.minimum(tl.maximum(reached + 1, end), length))
