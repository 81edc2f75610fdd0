"""Jagged rows: packed values [T, ...] and offsets [B+1]; row b is values[offsets[b]:offsets[b+1]] and may be empty."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .checks import check_tensors, invalid
from .modes import compiling_ahead

_trusted = False
_checked: WeakIdKeyDictionary = WeakIdKeyDictionary()  # offsets on a device -> T and version when they were right


@contextmanager
def trusted_offsets() -> Iterator[None]:
    """Inside, numbers of offsets on a device are not read: their batch was checked on the host, and reading them waits.

    Outside, each new tensor of offsets is read once, because a kernel would follow wrong ones beyond its tensors.
    """
    global _trusted
    before, _trusted = _trusted, True
    try:
        yield
    finally:
        _trusted = before


def trusting() -> bool:
    """Whether the caller is inside of `trusted_offsets`, with a batch that was checked."""
    return _trusted


def row_lengths(offsets: Tensor) -> list[int]:
    """Length of each of the B rows, on the host (waits for the device)."""
    return [int(length) for length in offsets.diff().tolist()]


def row_mask(offsets: Tensor, max_length: int) -> Tensor:
    """bool [B, max_length], true where a padded row holds a value."""
    positions = torch.arange(max_length, device=offsets.device)
    return positions < offsets.diff()[:, None]


def row_of_each(offsets: Tensor, num_values: int) -> Tensor:
    """int64 [T]: the row that each of ``num_values`` packed values belongs to.

    Not by a search in ``offsets``, which torch 2.11 compiles into GPU kernels of two dimensions that find rows beyond
    the last.
    """
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return rows.repeat_interleave(offsets.diff(), output_size=num_values)


def _places(offsets: Tensor, num_values: int) -> tuple[Tensor, Tensor]:
    """Row and position in that row of each packed value."""
    rows = row_of_each(offsets, num_values)
    return rows, torch.arange(num_values, device=offsets.device) - offsets[rows]


def to_padded(values: Tensor, offsets: Tensor, max_length: int) -> Tensor:
    """[T, ...] -> [B, max_length, ...], zeros behind each row's end. ``max_length`` must cover the longest row."""
    padded = values.new_zeros(offsets.shape[0] - 1, max_length, *values.shape[1:])
    return padded.index_put(_places(offsets, values.shape[0]), values)


def from_padded(padded: Tensor, offsets: Tensor, num_values: int) -> Tensor:
    """[B, max_length, ...] -> [T, ...]: undo `to_padded`."""
    return padded[_places(offsets, num_values)]


def check_offsets(op: str, offsets: Tensor, values: Tensor, *, num_rows: int | None, max_length: int | None) -> None:
    """``offsets`` describe all of the packed ``values`` in ``num_rows`` rows (any number if None).

    The numbers in them are checked on a CPU always, on a GPU once for each tensor of offsets, which waits for the
    device, unless `trusted_offsets` says that it was done; neither while compiling, ahead or not, or capturing a CUDA
    graph.

    Raises:
        InvalidArgument: wrong type, shape, dtype or device; offsets that do not start at 0, that decrease or that do
            not end at T; a ``max_length`` below the longest row.
    """
    check_tensors(op, offsets=offsets)
    given_rows = offsets.shape[0] - 1 if offsets.ndim == 1 else 0
    if given_rows < 1 or (num_rows is not None and given_rows != num_rows):
        raise invalid(op, "offsets", f"of shape {list(offsets.shape)}", f"[B+1] with B = {num_rows or 'at least 1'}")
    if offsets.dtype not in (torch.int32, torch.int64):
        raise invalid(op, "offsets", f"of dtype {offsets.dtype}", "torch.int32 or torch.int64")
    if offsets.device != values.device:
        raise invalid(op, "offsets", f"on {offsets.device}", f"{values.device}, where the values are")
    if not (max_length is None or isinstance(max_length, (Integral, torch.SymInt))):
        raise invalid(op, "max_length", f"of type {type(max_length).__name__}", "None or an integer")
    if max_length is not None and max_length < 0:
        raise invalid(op, "max_length", max_length, "None or the longest row's length, at least 0")
    if torch.compiler.is_compiling() or compiling_ahead():  # there are no numbers
        return
    if offsets.device.type == "cpu":
        _check_numbers(op, offsets.tolist(), values.shape[0], max_length)
    elif offsets.device.type == "cuda" and not (_trusted or torch.cuda.is_current_stream_capturing()):
        _check_once(op, offsets, values.shape[0], max_length)


def _check_once(op: str, offsets: Tensor, num_values: int, max_length: int | None) -> None:
    """`_check_numbers`, unless the same tensor, unchanged, was found right before."""
    if offsets.is_inference():  # such a tensor does not count its versions
        _check_numbers(op, offsets.tolist(), num_values, max_length)
        return
    given = (num_values, max_length, offsets._version)
    if _checked.get(offsets) != given:
        _check_numbers(op, offsets.tolist(), num_values, max_length)
        _checked[offsets] = given


def _check_numbers(op: str, offsets: list[int], num_values: int, max_length: int | None) -> None:
    lengths = [end - start for start, end in itertools.pairwise(offsets)]
    if offsets[0] != 0 or offsets[-1] != num_values or min(lengths) < 0:
        shown = offsets if len(offsets) <= 8 else f"[{offsets[0]}, ..., {offsets[-1]}]"
        raise invalid(op, "offsets", shown, f"numbers from 0 to T = {num_values} that never decrease")
    if max_length is not None and max_length < max(lengths):
        raise invalid(op, "max_length", max_length, f"at least {max(lengths)}, the longest row's length")


def host_max_length(offsets: Tensor, max_length: int | None) -> int:
    """``max_length`` as given, else read from ``offsets``, which waits for the device."""
    return int(offsets.diff().max()) if max_length is None else max_length
