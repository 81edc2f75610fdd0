"""Triton's interpreter, which runs kernels on the host: slowly, and in fp16 and fp32 rightly."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mfubench.errors import BadInput

VARIABLE = "TRITON_INTERPRET"


def interpret_kernels() -> None:
    """Let Triton's interpreter run the kernels of this process.

    Raises:
        BadInput: triton has been imported already, as compiler.
    """
    if os.environ.get(VARIABLE) == "1":
        return
    if "triton" in sys.modules:
        raise BadInput(f"triton was imported as a compiler; set {VARIABLE}=1 before Python starts")
    os.environ[VARIABLE] = "1"


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
