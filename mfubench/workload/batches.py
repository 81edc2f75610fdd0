"""Where the batches of a user's own model come from: its make_batch, or a loader in its place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from mfubench.errors import BadInput
from mfubench.measure.operators import is_nested, tensors_of
from mfubench.user_code import kind_of, located

from .loader import Loader


@dataclass(frozen=True, slots=True)
class Batches:
    """A workload's input sets, of ``num_samples`` requests; what brings one to its device.

    ``described`` says where they are from, in words.
    """

    inputs: list[Any]
    num_samples: list[int]
    to_device: Callable[[Any], Any]
    described: str
    loader: Loader | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Requests of the first one, as a workload is said to have."""
        return self.num_samples[0]


def made_by(make_batch: Callable[..., Any], batch_size: int, device: torch.device, num_sets: int) -> Batches:
    """``num_sets`` batches of ``make_batch(batch_size, device)``, which are on the device before a step.

    Raises:
        BadInput: it raises, or makes what is no batch.
    """
    inputs = [_inputs(make_batch, batch_size, device) for _ in range(num_sets)]
    return Batches(
        inputs,
        [batch_size] * num_sets,
        handed_out,
        "the model's own make_batch",
        warnings=_of_another_size(make_batch, batch_size, device, inputs[0]) or _of_other_rows(batch_size, inputs),
    )


def loaded(loader: Loader, asked: int | None, device: torch.device, num_sets: int) -> Batches:
    """The first ``num_sets`` batches of ``loader``, which are on the host until a step moves them.

    Raises:
        BadInput: batches of another size were ``asked`` for than it can give, and as `Loader.draw`.
    """
    if asked is not None:
        loader = loader.of_size(asked)
    inputs = [loader.draw() for _ in range(num_sets)]
    loader.end()
    num_samples = [loader.rows_of(batch) for batch in inputs]
    if asked not in (None, num_samples[0]):
        why = (
            "as its dataset or collate_fn makes them"
            if loader.takes_sizes
            else "or return a torch DataLoader with a batch_size, or make_batch(batch_size, device): they give any"
        )
        raise BadInput(
            f"{loader.name}: batches of {asked} are asked for, and its loader gives {num_samples[0]}; ask for these, "
            f"{why}"
        )
    return Batches(
        inputs,
        num_samples,
        partial(_moved, device),
        "the model's own loader",
        loader=loader,
        warnings=loader.doubt(inputs[0]),
    )


def _moved(device: torch.device, batch: Any) -> Any:
    """``batch`` on ``device``, as a training moves it: a copy out of pinned memory does not hold up the host.

    In dicts and lists of this step's own, as `handed_out`.
    """
    return tree_map(
        lambda leaf: leaf.to(device, non_blocking=True) if hasattr(leaf, "to") else leaf, batch, is_leaf=_is_packed
    )


def _is_packed(part: Any) -> bool:
    """Whether it is moved as one, as it keeps lengths on the host."""
    return isinstance(part, PackedSequence)


def _inputs(make_batch: Callable[..., Any], batch_size: int, device: torch.device) -> Any:
    try:
        batch = make_batch(batch_size, device)
    except (Exception, SystemExit) as error:
        raise BadInput(f"make_batch({batch_size}, {device}) raised {located(error)}") from error
    if not isinstance(batch, (tuple, Mapping)):
        raise BadInput(
            f"make_batch returned {kind_of(batch)}; a tuple of positional or a dict of keyword arguments is needed"
        )
    tensors = tensors_of(batch)
    if tensors and not any(tensor.numel() for tensor in tensors):
        raise BadInput(f"make_batch({batch_size}, {device}) made a batch without rows; nothing would be measured")
    moved: Any = (torch.Tensor, PackedSequence)
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, moved) else leaf, batch, is_leaf=_is_packed)


def handed_out(batch: Any) -> Any:
    """``batch`` in dicts and lists of this step's own: what a model takes out of them, a later step finds again."""
    if type(batch) is dict:
        return {name: handed_out(value) for name, value in batch.items()}
    return type(batch)(map(handed_out, batch)) if type(batch) in (list, tuple) else batch


def shapes_of(batch: Any) -> list[str]:
    """Shape and dtype of each tensor of ``batch``."""
    return [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors_of(batch)]


def _of_another_size(make_batch: Callable[..., Any], batch_size: int, device: torch.device, batch: Any) -> list[str]:
    """A warning where ``batch``, of ``batch_size``, is as large as one of another size."""
    other = 1 if batch_size > 1 else 2
    try:
        fixed = bool(shapes_of(batch)) and shapes_of(make_batch(other, device)) == shapes_of(batch)
    except (Exception, SystemExit):
        return []  # no such size can be made, so it is asked for
    told = f"make_batch({other}, device) is as large as make_batch({batch_size}, device)"
    return [f"{told}: what is told of a sample takes a step to have {batch_size}"] if fixed else []


def _of_other_rows(batch_size: int, inputs: Sequence[Any]) -> list[str]:
    """A warning where each batch's tensors have as many rows, and in some batch as many as nobody asked for.

    Where it is as many in every batch, ``batch_size`` may be another dimension's, as where time comes first.
    """
    found = set()
    for batch in inputs:
        rows = {tensor.size(0) for tensor in tensors_of(batch) if tensor.dim()}
        if len(rows) != 1:
            return []
        found |= rows
    sizes = (tensor.shape for tensor in tensors_of(inputs[0]) if not is_nested(tensor))
    if found == {batch_size} or (len(found) == 1 and any(batch_size in shape for shape in sizes)):
        return []
    told = f"make_batch({batch_size}, device) made batches of {' and '.join(map(str, sorted(found)))} rows"
    return [f"{told}: what is told of a sample takes a step to have {batch_size}"]
