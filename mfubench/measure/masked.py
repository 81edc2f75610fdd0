"""Attention that is written out, a softmax between batched products: which of their FLOPs its mask leaves useful.

A fused operator is given its mask. Here the mask is seen where it acts: a softmax meets scores that were lowered until
nothing is left of their weights. Of the product that made the scores, and of those that take the weights, the
mathematics needs the other pairs alone; backward it is the same with the gradients. What lies between, such as scaling,
an added bias or dropout, is followed from tensor to tensor.

Scores that something else reads, such as a top-k that makes the mask from them, are needed whole. So is what a mask
drops without a softmax.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import is_fake

from .classify import op_class
from .operators import is_nested, tensors_of

SLICE = 2**24  # entries of scores that are looked at together
# A score that is so far below its row's highest was lowered by a mask: the least that masks take off, in BERT's
# (1 - mask) * -10000, is twice as much, and what honest scores add to it or take from it is less. An honest score,
# too, may have a weight of exactly zero, in fp32 from 104 below the highest on, and is needed all the same.
LOWERED = 5e3

_PRODUCTS = ("aten::bmm", "aten::baddbmm")  # of two factors, the last arguments
_SOFTMAX = ("aten::_softmax", "aten::_safe_softmax")
_SOFTMAX_BACKWARD = "aten::_softmax_backward_data"
_DROPOUT = "aten::native_dropout"


class Booked(Protocol):
    """Where FLOPs were booked."""

    model: int


@dataclass(slots=True, eq=False)
class _Product:
    """A product whose result may be scores, or their gradient; ``whole`` once something else has read that."""

    booked: Booked
    model: int
    dropped: int = 0  # model FLOPs
    met: bool = False  # a softmax
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _Note:
    """Of a tensor with ``numel`` entries: the products it is a sum of, and how many entries may be other than zero."""

    numel: int
    products: tuple[_Product, ...] = ()
    kept: int | None = None


def _sliced(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """``tensor`` in parts, of which to look at each takes little memory, where scores nearly fill the device."""
    rows = torch.atleast_1d(tensor)
    parts: Sequence[torch.Tensor] = rows.split(max(1, SLICE * rows.size(0) // max(1, rows.numel())))
    return parts


def _nonzero(tensor: torch.Tensor) -> int:
    return sum(int(part.count_nonzero()) for part in _sliced(tensor))


def near_highest(scores: torch.Tensor, dim: int = -1) -> Iterator[torch.Tensor]:
    """In parts that take little memory each: which scores no mask has lowered below the highest of their row."""
    highest = scores.amax(dim, keepdim=True).expand_as(scores) if scores.numel() else scores
    for part, of_row in zip(_sliced(scores), _sliced(highest), strict=True):
        yield part - of_row > -LOWERED  # of infinities that is not so


class MaskedProducts:
    """Follows scores and weights through a step's operators."""

    def __init__(self) -> None:
        self._notes: dict[int | None, _Note] = {}  # by the storage's address
        self._products: list[_Product] = []

    def useful(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any, model: int, booked: Booked
    ) -> int:
        """Of the ``model`` FLOPs of one call, to be booked on ``booked``, those that known weights leave useful.

        Nested tensors are not followed: their rows are as long as they are; what a mask drops of them stays counted.
        """
        if any(map(is_nested, tensors_of((args, kwargs, out)))):
            self.read((args, kwargs))
            return model
        if name in _PRODUCTS:
            return self._product([value for value in args if isinstance(value, torch.Tensor)][-2:], out, model, booked)
        tensors = tensors_of((args, kwargs))
        noted = [note for note in map(self._note_of, tensors) if note is not None]
        if name in _SOFTMAX:
            self._softmax(args[0], args[1], out)
        elif not noted:
            pass
        elif name == _SOFTMAX_BACKWARD:
            self._softmax_backward(args[0], args[1], out)
        elif name == _DROPOUT or op_class(name) in ("elementwise", "copy"):
            self._follow(noted, out[0] if name == _DROPOUT else out)
        elif not _is_view(out, tensors):
            self._read(noted)
        return model

    def read(self, arguments: Any) -> None:
        """Note that something unknown reads ``arguments``."""
        self._read(note for note in map(self._note_of, tensors_of(arguments)) if note is not None)

    def discount(self) -> None:
        """Take what masks drop off the products that made the scores: at the end, when all that reads them is known."""
        for product in self._products:
            if product.met and not product.whole:
                product.booked.model -= product.dropped
        self._products.clear()

    def _product(self, factors: Sequence[torch.Tensor], out: torch.Tensor, model: int, booked: Booked) -> int:
        for factor in factors:
            note = self._note_of(factor)
            if note is None:
                continue
            self._read([note])
            if note.kept is not None:
                model = model * note.kept // max(note.numel, 1)
        product = _Product(booked, model)
        self._products.append(product)
        self._keep(out, _Note(out.numel(), (product,)))
        return model

    def _softmax(self, scores: torch.Tensor, dim: int, weights: torch.Tensor) -> None:
        note = self._note_of(scores) or _Note(scores.numel())
        if scores.is_meta or is_fake(scores):
            self._read([note])
            return
        # A row without any is what the softmax makes of it.
        parts = zip(near_highest(scores, dim), _sliced(weights), strict=True)
        kept = sum(int((near | (weight != 0)).sum()) for near, weight in parts)
        self._drop(note.products, kept, note.numel)
        self._keep(weights, _Note(weights.numel(), kept=kept))

    def _softmax_backward(self, gradient: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> None:
        note, of_weights = self._note_of(gradient), self._note_of(weights)
        if of_weights is None or of_weights.kept is None:
            self._read([] if note is None else [note])
            return
        if note is not None:
            self._drop(note.products, of_weights.kept, of_weights.numel)
        self._keep(out, _Note(out.numel(), kept=of_weights.kept))

    @staticmethod
    def _drop(products: Iterable[_Product], kept: int, numel: int) -> None:
        for product in products:
            product.whole |= product.met  # by another one
            product.met = True
            product.dropped = product.model - product.model * kept // max(numel, 1)

    def _follow(self, noted: Sequence[_Note], out: Any) -> None:
        """``out`` is made of noted tensors entry by entry, or they were read for something else."""
        same = [note for note in noted if isinstance(out, torch.Tensor) and note.numel == out.numel()]
        if len(same) < len(noted) or not out.is_floating_point():
            self._read(noted)
            return
        kept = min((note.kept for note in same if note.kept is not None), default=None)
        if kept is not None and (out.is_meta or is_fake(out) or _nonzero(out) > kept):
            kept = None  # zeros became something else
        self._keep(out, _Note(out.numel(), tuple({product: None for note in same for product in note.products}), kept))

    @staticmethod
    def _read(noted: Iterable[_Note]) -> None:
        for note in noted:
            for product in note.products:
                product.whole = True

    def _note_of(self, tensor: torch.Tensor) -> _Note | None:
        """What is known of ``tensor``, unless it is a part of what that was noted of."""
        note = self._notes.get(_address(tensor))
        return note if note is not None and note.numel == tensor.numel() else None

    def _keep(self, tensor: torch.Tensor, note: _Note) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._notes:
            weakref.finalize(storage, self._notes.pop, storage._cdata, None).atexit = False
        self._notes[storage._cdata] = note


def _is_view(out: Any, given: Iterable[torch.Tensor]) -> bool:
    """Whether ``out`` looks at tensors that the call was given, or is one of them."""
    looked_at = {_address(tensor) for tensor in given}
    made = [_address(tensor) for tensor in tensors_of(out)]
    return bool(made) and looked_at.issuperset(made)


def _address(tensor: torch.Tensor) -> int | None:
    """Its storage's address in C++; None where there is not one."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return None
    return int(tensor.untyped_storage()._cdata)
