"""What every triton implementation asks of its inputs before any launch."""

from torch import Tensor

from .checks import invalid
from .errors import UnsupportedImpl
from .limits import DTYPES, MAX_HEAD_DIM, MAX_ROW_WIDTH, MIN_HEAD_DIM
from .precision import matmul_dtype


def check_dtypes(op: str, **arguments: Tensor | None) -> None:
    """Each given tensor is of a dtype that kernels take.

    Raises:
        UnsupportedImpl: it is not.
    """
    for name, tensor in arguments.items():
        if tensor is not None and tensor.dtype not in DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise UnsupportedImpl(
                f"{op}: impl='triton' takes {allowed}; {name} is {tensor.dtype}; use impl='reference'"
            )


def check_head_dim(op: str, d: int) -> None:
    """Kernels hold whole heads in registers: d from 8 to 256, those below 16 padded inside.

    Raises:
        InvalidArgument: another d.
    """
    if not MIN_HEAD_DIM <= d <= MAX_HEAD_DIM:
        raise invalid(op, "the head dimension", d, f"{MIN_HEAD_DIM} to {MAX_HEAD_DIM} with impl='triton'")


def check_row_width(op: str, width: int) -> None:
    """One program holds a whole row in registers.

    Raises:
        InvalidArgument: a row is too wide for that.
    """
    if width > MAX_ROW_WIDTH:
        raise invalid(op, "the row width", width, f"at most {MAX_ROW_WIDTH} with impl='triton'; use impl='reference'")


def cast_for_matmul(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast would do before a matmul: a kernel behind an operator of ours is none that autocast knows."""
    return tuple(tensor.to(matmul_dtype(tensor)) for tensor in tensors)
