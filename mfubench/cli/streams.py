"""Where output goes: results alone to stdout; whatever a model or a library prints to stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

STDOUT, STDERR = 1, 2


@contextmanager
def results_alone() -> Iterator[None]:
    """Inside, results go where stdout went, and what is written to its file descriptor goes to stderr.

    A library in C writes there without asking Python, and some of it when the process ends: so it stays so afterwards.
    """
    results = _moved()
    if results is None:
        yield
        return
    sys.stdout = results
    try:
        yield
    finally:
        sys.stdout = sys.stderr  # what a model has left for the end is no result either
        with suppress(OSError):  # of results that could not be written, which was told when they could not be
            results.close()


def _moved() -> TextIO | None:
    """What results are written to from now on; None where stdout is closed, and nothing is moved."""
    if sys.stdout is None:
        return None
    try:
        sys.stdout.flush()
    except OSError:
        return None
    place = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    old = sys.stdout
    return open(place, "w", encoding=old.encoding, errors=old.errors, buffering=1 if os.isatty(place) else -1)


def fill_gaps() -> None:
    """Where a standard stream is closed, the next file that is opened takes its place, and gets what it is sent."""
    for number in range(STDERR + 1):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = os.fdopen(STDERR, "w", encoding="utf-8", closefd=False)
