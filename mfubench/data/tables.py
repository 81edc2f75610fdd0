"""Reads columns of a delimited text file, and says in one line what is wrong with a file that cannot be read."""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mfubench.errors import BadInput

Array = npt.NDArray[Any]
CHUNK_ROWS = 1 << 22  # bounds what parsing holds beside the result: about 300 MB for a KuaiRand log
PEEK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Column:
    """A column to read: its dtype, and for numbers the smallest and largest value allowed, both included."""

    name: str
    dtype: str
    least: float = -np.inf
    most: float = np.inf
    required: bool = True


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 over the contents of the files, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def read_table(path: Path, columns: Sequence[Column]) -> Iterator[dict[str, Array]]:
    """Chunks of the rows of ``path``, each a dict of 1-D arrays; a column that is optional and absent is left out.

    The separator is a tab if the header holds one, else a comma. Columns that are not asked for are not kept.

    Raises:
        BadInput: no such file, not text, no rows, a missing column, a cell that is not of its column's type and
            range (with its row), or a last line that breaks off.
    """
    header, separator = _inspect(path)
    missing = [column.name for column in columns if column.required and column.name not in header]
    if missing:
        raise BadInput(f"{path}: missing column(s) {', '.join(missing)}; the header has {', '.join(header)}")
    present = [column for column in columns if column.name in header]
    try:
        for frame in _chunks(path, separator, {column.name: column.dtype for column in present}):
            chunk = {column.name: frame[column.name].to_numpy() for column in present}
            if any(column.dtype != "str" and _outside(column, chunk[column.name]).any() for column in present):
                raise ValueError("a value is out of its range")
            yield chunk
    except (ValueError, OverflowError) as error:  # pandas names neither the column nor the row
        raise BadInput(_explain(path, separator, present) or f"{path}: not a table: {error}") from None


def _chunks(path: Path, separator: str, dtypes: dict[str, str]) -> Iterator[Any]:
    options = {"index_col": False, "na_filter": False, "chunksize": CHUNK_ROWS}
    with pd.read_csv(path, sep=separator, usecols=list(dtypes), dtype=dtypes, **options) as reader:
        yield from reader


def _inspect(path: Path) -> tuple[list[str], str]:
    """The header's names and the separator, once the first and the last line look like lines of one table."""
    try:
        with path.open("rb") as file:
            head = file.read(PEEK_BYTES)
            size = file.seek(0, 2)
            file.seek(max(0, size - PEEK_BYTES))
            tail = file.read().rstrip(b"\r\n")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}; give a readable csv file") from None
    if not head.strip():
        raise BadInput(f"{path}: the file is empty; a header and rows are needed")
    try:
        first = head.splitlines()[0].decode("utf-8-sig")
        last = tail.splitlines()[-1].decode("utf-8", errors="replace")
    except UnicodeDecodeError:
        first = "\0"
    if "\0" in first or b"\0" in head:
        raise BadInput(f"{path}: not a text file; a plain, uncompressed csv file is needed")
    separator = "\t" if "\t" in first else ","
    header = next(csv.reader([first], delimiter=separator))
    if size <= PEEK_BYTES and len(tail.splitlines()) < 2:
        raise BadInput(f"{path}: has a header but no rows")
    fields = len(next(csv.reader([last], delimiter=separator)))
    if fields < len(header):
        raise BadInput(
            f"{path}: the last line has {fields} of {len(header)} fields; the file is cut short, get it again"
        )
    return header, separator


def _outside(column: Column, values: Array) -> npt.NDArray[np.bool_]:
    outside: npt.NDArray[np.bool_] = ~((values >= column.least) & (values <= column.most))
    return outside


def _explain(path: Path, separator: str, columns: Sequence[Column]) -> str | None:
    """The first cell that is not what its column holds, found by reading everything again as text."""
    rows_before = 0
    try:
        for frame in _chunks(path, separator, {column.name: "str" for column in columns}):
            found = [(row, column) for column in columns if (row := _first_bad(frame[column.name], column)) is not None]
            if found:
                row, column = min(found, key=lambda pair: pair[0])
                cell = frame[column.name].iloc[row] or "nothing"
                return (
                    f"{path}: column {column.name} holds {cell} in row {rows_before + row + 1} after the header; "
                    f"allowed: {_allowed(column)}"
                )
            rows_before += len(frame)
    except ValueError:  # not even rows of text
        return None
    return None


def _first_bad(cells: Any, column: Column) -> int | None:
    if column.dtype == "str":
        return None
    values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64)
    bad = _outside(column, values)
    if column.dtype.startswith("int"):
        bad |= (values != np.floor(values)) | (np.abs(values) >= 2.0**63)
    return int(bad.argmax()) if bad.any() else None


def _allowed(column: Column) -> str:
    kind = "a whole number" if column.dtype.startswith("int") else "a number"
    if column.most == np.inf:
        bounded = kind if column.least == -np.inf else f"{kind} of {column.least:g} or more"
        return f"{bounded}, below 2**63" if column.dtype == "int64" else bounded
    return f"{kind} from {column.least:.16g} to {column.most:.16g}"
