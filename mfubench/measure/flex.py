"""Pairs of queries and keys in a call of FlexAttention: those that its mask keeps, and those that are multiplied.

A call has a block mask (``torch.nn.attention.flex_attention.BlockMask``): lists of the blocks of keys that each block
of queries meets, and a function that says of any pair in them whether it is kept. Blocks that are listed as full keep
all their pairs, and the function is not asked. The kernel multiplies the blocks that are listed and skips the others,
which is what counts here as executed. Without ``torch.compile`` torch has no such kernel: it multiplies all pairs, of
which it warns, and the time that those in other blocks take is a loss of that implementation.

A function that changes scores may drop pairs, too, by lowering them to minus infinity. Which ones only the scores
tell: they stay counted.
"""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from .operators import tensors_of

SLICE = 2**22  # pairs that a mask's function is asked of together, where scores nearly fill the device


class Pairs(NamedTuple):
    """Pairs of all samples and heads: what the mask keeps, and what the kernel multiplies."""

    kept: int
    executed: int


@torch.no_grad()
def flex_pairs(query: Tensor, key: Tensor, block_mask: Sequence[Any], captured: Sequence[Any] = ()) -> Pairs:
    """Pairs of one call: all of them where tensors have no numbers.

    Args:
        query: [B, H, Q, D].
        key: [B or 1, H or fewer, K, D].
        block_mask: what ``BlockMask.as_tuple`` makes. From its third place on: how many blocks of keys each block of
            queries meets, [B or 1, H or 1, blocks], and which ones, with a dimension more; then the same of full
            blocks, or None. At its end: the sizes of blocks of queries and of keys, and the function.
        captured: what the function takes beyond a pair, where a compiler has lifted that out of it.
    """
    (batch, heads, queries), keys = query.shape[:3], key.shape[-2]
    every = batch * heads * queries * keys
    if not every or any(tensor.is_meta or is_fake(tensor) for tensor in tensors_of((query, block_mask, captured))):
        return Pairs(every, every)
    size = min(block_mask[-3], queries), min(block_mask[-2], keys)
    columns = -(-keys // size[1])
    some, full = (_listed(query, block_mask[place], block_mask[place + 1], columns) for place in (2, 4))

    def total(of_blocks: Tensor) -> int:
        """Sum over all samples and heads, whose blocks may be the same."""
        return int(of_blocks.sum()) * batch * heads // of_blocks[..., 0, 0].numel()

    in_block = _lengths(query, queries, size[0])[:, None] * _lengths(query, keys, size[1])
    executed = total(some * in_block) + total(full * in_block)
    kept = total(some * _kept_in_blocks(query, keys, block_mask[-1], captured, size))
    return Pairs(kept + total(full * in_block), executed)


def _listed(like: Tensor, numbers: Tensor | None, places: Tensor | None, columns: int) -> Tensor:
    """Which blocks are listed, [B or 1, H or 1, blocks of queries, blocks of keys]; a row's list ends at its number."""
    if numbers is None or places is None:
        return like.new_zeros(1, 1, 1, 1, dtype=torch.bool)
    in_list = torch.arange(places.shape[-1], device=places.device) < numbers[..., None]
    found = like.new_zeros(*places.shape[:-1], columns + 1, dtype=torch.bool)  # the last is for what is in no list
    return found.scatter_(-1, places.long().where(in_list, columns), True)[..., :-1]


def _lengths(like: Tensor, length: int, size: int) -> Tensor:
    """Of blocks of ``size``, the last of which may be shorter."""
    return (length - torch.arange(0, length, size, device=like.device)).clamp(max=size)


def _kept_in_blocks(query: Tensor, keys: int, function: Any, captured: Sequence[Any], size: tuple[int, int]) -> Tensor:
    """How many pairs of each block ``function`` keeps, for all samples and heads, or for one where they are alike."""
    batch, heads, queries = query.shape[:3]

    def mask(first: Sequence[int], num: Sequence[int]) -> Tensor:
        """Whether each pair is kept, of so many samples, heads and queries from the first on."""
        from torch.nn.attention.flex_attention import create_mask  # whoever makes a block mask has loaded it

        def moved(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            kept: Tensor = function(b + first[0], h + first[1], q + first[2], k, *captured)
            return kept

        return create_mask(moved, num[0], num[1], num[2], keys, device=query.device)

    # What the function does not look at is expanded: it has no memory of its own.
    first_query = mask((0, 0, 0), (batch, heads, 1))
    varies = [length if first_query.stride(dim) else 1 for dim, length in enumerate((batch, heads))]
    shape = (*varies, queries)
    kept = torch.zeros(*shape, -(-keys // size[1]), dtype=torch.long, device=query.device)
    steps = [max(1, min(shape[dim], SLICE // (keys * prod(shape[dim + 1 :])))) for dim in range(3)]
    for first in product(*(range(0, length, step) for length, step in zip(shape, steps, strict=True))):
        part = [min(step, length - place) for place, step, length in zip(first, steps, shape, strict=True)]
        b, h, q = (slice(place, place + length) for place, length in zip(first, part, strict=True))
        kept[b, h, q] = _sums(mask(first, part), size[1])
    return _sums(kept.transpose(-1, -2), size[0]).transpose(-1, -2)


def _sums(numbers: Tensor, size: int) -> Tensor:
    """Sums of ``size`` neighbours each in the last dimension."""
    padded = F.pad(numbers, (0, -numbers.shape[-1] % size))
    return padded.reshape(*padded.shape[:-1], -1, size).sum(-1)
