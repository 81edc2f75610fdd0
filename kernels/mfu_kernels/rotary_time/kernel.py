"""Rotation of feature pairs in Triton: a few tokens a program, whose angles serve all heads.

A head's two halves are two tiles, so that a rotation mixes them element by element and moves no column. Sines and
cosines are made in registers, in fp32: reading them would cost as many bytes as half of x.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, cdiv, config, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride
from mfu_kernels.tiles import tile_of

from .boundary import _outputs


@triton.jit
def rotary_time_kernel(
    x, angles, out, num_tokens, num_heads, angle_stride, x_strides, out_stride,
    BACK: tl.constexpr, HALF: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """out [T, H, 2 HALF] = x with each pair (x_k, x_{k+HALF}) turned by its token's angle k, or BACK by it.

    Heads of a token lie side by side in ``out``, tokens ``out_stride`` apart.
    """
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    places, inside = tile_of(tokens, num_tokens, angle_stride, HALF, PADDED)
    turn = tl.load(angles + places, mask=inside, other=0.0).to(tl.float32)
    cos, sin = tl.cos(turn), tl.sin(turn)
    if BACK:
        sin = -sin
    read, _ = tile_of(tokens, num_tokens, x_strides[0], HALF, PADDED)
    write, _ = tile_of(tokens, num_tokens, out_stride, HALF, PADDED)
    for head in range(0, num_heads):
        first = tl.load(x + head * x_strides[1] + read, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x + head * x_strides[1] + HALF + read, mask=inside, other=0.0).to(tl.float32)
        place = out + head * 2 * HALF + write
        tl.store(place, (first * cos - second * sin).to(out.dtype.element_ty), mask=inside)
        tl.store(place + HALF, (first * sin + second * cos).to(out.dtype.element_ty), mask=inside)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Eight values of a half a thread are one access of 16 bytes at 16 bits."""
    half = int(key["half"])
    return [
        config(num_warps=warps, TOKENS=max(1, 32 * warps * values // half))
        for warps, values in ((4, 8), (4, 16), (8, 8), (2, 8), (4, 32))
    ]


ROTATE = Kernel(rotary_time_kernel, _configs)


def rotate(x: Tensor, angles: Tensor, back: bool) -> Tensor:
    """``x`` [T, H, d] turned by ``angles`` [T, d/2], or back by them."""
    out = _outputs(x, angles, back)
    rotate_into(out, x, angles, back)
    return out


def rotate_into(out: Tensor, x: Tensor, angles: Tensor, back: bool) -> None:
    """The same into ``out``, whose heads of a token lie side by side."""
    if not x.numel():
        return
    x, angles = with_unit_stride(x), with_unit_stride(angles)
    (num_tokens, num_heads, d), padded = x.shape, next_power_of_2(x.shape[2] // 2)
    ROTATE.launch(
        lambda c: (cdiv(num_tokens, c["TOKENS"]),), x.device,
        x, angles, out, num_tokens, num_heads, angles.stride(0), x.stride()[:2], out.stride(0),
        key={"half": padded, "bytes": x.element_size()}, BACK=back, HALF=d // 2, PADDED=padded,
    )  # fmt: skip
