"""Triton's interpreter, which runs kernels on the host: slowly, and in fp16 and fp32 rightly."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "TRITON_INTERPRET"


@contextmanager
def interpreting_children() -> Iterator[None]:
    """Inside, processes that are started let Triton's interpreter run their kernels, whatever this one does."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
