"""Checks of arguments that every op shares; each says which op, which argument, what was given and what is allowed."""

from torch import Tensor

from .errors import InvalidArgument
from .precision import matmul_dtype


def invalid(op: str, argument: str, given: object, allowed: str) -> InvalidArgument:
    """The error to raise; all ops word it alike."""
    return InvalidArgument(f"{op}: {argument} is {given}; allowed: {allowed}")


def check_tensors(op: str, **arguments: object) -> None:
    """Every argument is a tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise invalid(op, name, f"of type {type(value).__name__}", "a tensor")


def check_shapes(op: str, **arguments: tuple[Tensor, str]) -> dict[str, int]:
    """Match each tensor with its dimensions, such as ``"T H d"``; one letter is one size, and only T may be 0.

    A number, as in ``"T 3 H d"``, is that size.

    All tensors must lie on one device. Returns the size of each letter.
    """
    check_tensors(op, **{name: tensor for name, (tensor, _) in arguments.items()})
    sizes: dict[str, int] = {}
    device = next(iter(arguments.values()))[0].device
    for name, (tensor, dims) in arguments.items():
        letters = dims.split()
        shape = tuple(tensor.shape)
        if len(shape) != len(letters):
            raise invalid(op, name, f"of shape {list(shape)}", f"[{', '.join(letters)}]")
        for letter, size in zip(letters, shape, strict=True):
            if letter.isdecimal() and size != int(letter):
                raise invalid(op, name, f"of shape {list(shape)}", f"[{', '.join(letters)}]")
            if size != sizes.setdefault(letter, size) or (size == 0 and letter != "T"):
                need = sizes[letter] or "at least 1"
                raise invalid(op, name, f"of shape {list(shape)}", f"[{', '.join(letters)}] with {letter} = {need}")
        if tensor.device != device:
            raise invalid(op, name, f"on {tensor.device}", f"{device}, where the first argument is")
    return sizes


def check_floating(op: str, **arguments: Tensor | None) -> None:
    """Every given tensor is floating-point, of any width."""
    for name, tensor in arguments.items():
        if tensor is not None and not tensor.is_floating_point():
            raise invalid(op, name, f"of dtype {tensor.dtype}", "a floating-point dtype")


def check_matmul_dtypes(op: str, **arguments: Tensor) -> None:
    """Every tensor is floating-point, and matmuls see one dtype, be it that autocast makes it so."""
    check_floating(op, **arguments)
    first, *others = arguments
    dtype = matmul_dtype(arguments[first])
    for name in others:
        if matmul_dtype(arguments[name]) != dtype:
            raise invalid(op, name, f"of dtype {arguments[name].dtype}", f"{dtype}, as {first} is, or use autocast")


def check_eps(op: str, eps: float) -> None:
    """A norm's eps is above 0, so that a row of zeros stays finite."""
    if not eps > 0:
        raise invalid(op, "eps", eps, "a number above 0")


def check_norm(op: str, x: Tensor, eps: float, *, residual: Tensor | None = None, **affine: Tensor | None) -> None:
    """A norm of ``x`` [..., D]: each of ``affine`` is [D] and ``residual`` is shaped as ``x``, where they are given."""
    present = {name: tensor for name, tensor in {**affine, "residual": residual}.items() if tensor is not None}
    check_tensors(op, x=x, **present)
    check_floating(op, x=x, **present)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise invalid(op, "x", f"of shape {list(x.shape)}", "[..., D] with D at least 1")
    needed = {"residual": (residual, x.shape), **{name: (tensor, x.shape[-1:]) for name, tensor in affine.items()}}
    for name, (tensor, shape) in needed.items():
        if tensor is not None and (tensor.shape != shape or tensor.device != x.device):
            given = f"of shape {list(tensor.shape)} on {tensor.device}"
            raise invalid(op, name, given, f"{list(shape)} on {x.device}, to fit x")
    check_eps(op, eps)
