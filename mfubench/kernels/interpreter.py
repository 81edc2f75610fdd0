"""Triton's interpreter, which runs kernels on the host: slowly, and in fp16 and fp32 rightly."""

import os
import sys

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
