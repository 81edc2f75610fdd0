"""What mfubench raises on purpose. The command line prints the message, never a traceback, and exits with the code.

    MfubenchError                5
    ├── BadInput                 2   a value, file or name that the caller can mend
    │   ├── UnknownAccelerator   2   no datasheet row for this device
    │   └── OutOfMemory          2   more memory than the device, or the host, has free
    └── ToolBroke                5   the tool or the benchmark failed; nothing is wrong with the input

``mfu_kernels.errors.InvalidArgument``, which the packages below raise, counts as bad input and exits with 2 too.
"""

from typing import ClassVar


class MfubenchError(Exception):
    """The root. Its message is one line: what was given, what is allowed, what to do."""

    exit_code: ClassVar[int] = 5

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class BadInput(MfubenchError):
    """A value, file or name that the caller can mend."""

    exit_code = 2


class UnknownAccelerator(BadInput):
    """No datasheet peak is recorded for the device; none is ever assumed."""


class OutOfMemory(BadInput):
    """The workload needs more memory than its device, or the host, has free."""


class ToolBroke(MfubenchError):
    """The tool or the benchmark itself failed."""
