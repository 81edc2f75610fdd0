"""Parts of cost formulas that ops share: which gradients a call needs, bytes moved once, attention's matmuls."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cost import OpCost, PassCost
from .precision import matmul_dtype


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a call with these inputs has a backward pass that reaches any of them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def num_bytes(*tensors: Tensor | None) -> int:
    """Bytes of all given tensors, by shape: a broadcast view counts in full."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def matmul_bytes(numel: int, like: Tensor) -> int:
    """Bytes of ``numel`` results of a matmul with ``like``, whose dtype autocast may decide."""
    return numel * matmul_dtype(like).itemsize


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes of one call with each tensor moved once: ``fwd`` and ``bwd`` in all."""

    fwd: int
    bwd: int


def moved_once(
    inputs: Sequence[Tensor | None], output_bytes: int, *, saved: Sequence[Tensor | None] | None = None
) -> Moved:
    """Forward reads the inputs and writes the output; backward reads what is ``saved`` of the inputs (all, if None)
    and the output's gradient, and writes the gradients that are needed."""
    gradients = [t for t in inputs if needs_grad(t)]
    read_again = num_bytes(*(inputs if saved is None else saved))
    bwd = read_again + output_bytes + num_bytes(*gradients) if gradients else 0
    return Moved(num_bytes(*inputs) + output_bytes, bwd)


def without_matmul(moved: Moved) -> OpCost:
    """The cost of an op that only moves bytes, as FLOPs are counted here."""
    return OpCost(PassCost(bytes=moved.fwd), PassCost(bytes=moved.bwd))


def product_of_rows(
    lengths: Sequence[int], flops: int, needs: Sequence[bool], moved: Moved, *, max_length: int
) -> OpCost:
    """One product of ``flops`` a value of jagged rows, and in the backward one for each gradient that is needed.

    The reference computes ``max_length`` values a row.
    """
    padded, hardware = len(lengths) * max(lengths), len(lengths) * max_length

    def products(count: int, bytes_moved: int) -> PassCost:
        each = count * flops
        return PassCost(each * sum(lengths), each * padded, each * hardware, bytes_moved)

    return OpCost(products(1, moved.fwd), products(sum(needs), moved.bwd))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Query-key pairs of one head, summed over the batch, in `PassCost`'s three countings."""

    model: int
    padded: int
    hardware: int

    def run_by(self, impl: str) -> "Pairs":
        """A kernel runs over true lengths and kept pairs, where ``hardware`` is what the reference executes."""
        return self if impl == "reference" else Pairs(self.model, self.padded, self.model)


def attention_cost(
    pairs: Pairs, width: int, needs: tuple[bool, bool, bool], moved: Moved, *, repeated: int = 0
) -> OpCost:
    """Scores q kᵀ and a weighted sum of v, over all heads' ``width`` = H d.

    Each product costs 2 ``width`` a pair: two forward; backward one for each of dV, dP, dQ and dK that is needed, by
    whether q, k and v need gradients (``needs``). The reference saves the scores; an implementation that does not runs
    ``repeated`` products more in its backward.
    """
    q, k, v = needs
    backward = v + (q or k) + q + k
    again = repeated if backward else 0

    def products(count: int, bytes_moved: int, again: int = 0) -> PassCost:
        flops, more = 2 * width * count, 2 * width * again * pairs.hardware
        executed = flops * pairs.hardware + more
        return PassCost(flops * pairs.model, flops * pairs.padded, executed, bytes_moved, recomputed=more)

    return OpCost(products(2, moved.fwd), products(backward, moved.bwd, again))


def repeated_in_two_kernels(q: bool, k: bool, v: bool) -> int:
    """Products that a backward in two kernels repeats, by which of q, k and v need gradients.

    One kernel makes dQ from scores and dP, and runs also for what the other takes from it; the other makes dV from the
    scores, and dK from both.
    """
    for_queries = (q or k) * (2 + q)
    for_keys = (k or v) * (1 + v + 2 * k)
    return for_queries + for_keys - (v + (q or k) + q + k)
