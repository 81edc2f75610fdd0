"""RMSNorm in Triton: a few rows a program, each row in registers, statistics in fp32.

Backward walks the rows with a fixed number of programs. Each adds up its share of the weight's gradient in registers,
element by element, and reduces it once at the end: a sum over rows inside the loop would cross warps through shared
memory at every step. The shares are summed after, in a fixed order, without atomics.
"""

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, cdiv, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import num_walkers, row_configs, walking_configs, with_unit_stride

from .boundary import _bwd_outputs, _fwd_outputs


@triton.jit
def rms_norm_fwd_kernel(
    x, weight, out, rstd, num_rows, width, x_stride, eps,
    HAS_WEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out = x / sqrt(mean(x²) + eps) * weight for ROWS rows of ``width`` <= WIDTH."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    values = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / width + eps)
    normed = values * scale[:, None]
    if HAS_WEIGHT:
        normed *= tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    tl.store(out + rows[:, None] * width + columns[None, :], normed.to(out.dtype.element_ty), mask=inside)
    tl.store(rstd + rows, scale, mask=rows < num_rows)


@triton.jit
def rms_norm_bwd_kernel(
    grad, x, weight, rstd, dx, shares, num_rows, width, grad_stride, x_stride,
    HAS_WEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    """dx = rstd (g w - x̂ mean(g w x̂)), and each program's share of dw = sum over rows of g x̂."""
    columns = tl.arange(0, WIDTH)
    kept = columns < width
    if HAS_WEIGHT:
        scale = tl.load(weight + columns, mask=kept, other=0.0).to(tl.float32)[None, :]
        share = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for start in tl.range(first, num_rows, tl.num_programs(0) * ROWS, num_stages=num_stages):
        rows = start + tl.arange(0, ROWS)
        inside = (rows < num_rows)[:, None] & kept[None, :]
        gradient = tl.load(grad + rows[:, None] * grad_stride + columns[None, :], mask=inside, other=0.0)
        gradient = gradient.to(tl.float32)
        values = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(rstd + rows, mask=rows < num_rows, other=0.0)[:, None]
        normed = values * inverse
        if HAS_WEIGHT:
            share += gradient * normed
            gradient *= scale
        projection = tl.sum(gradient * normed, axis=1)[:, None] / width
        change = inverse * (gradient - normed * projection)
        tl.store(dx + rows[:, None] * width + columns[None, :], change.to(dx.dtype.element_ty), mask=inside)
    if HAS_WEIGHT:
        tl.store(shares + tl.program_id(0).to(tl.int64) * width + columns, tl.sum(share, axis=0), mask=kept)


FORWARD = Kernel(rms_norm_fwd_kernel, row_configs)
BACKWARD = Kernel(rms_norm_bwd_kernel, walking_configs)


def forward(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The normed rows [N, D] of ``x`` [N, D] and 1 / rms of each, fp32 [N]."""
    out, rstd = _fwd_outputs(x, weight, eps)
    num_rows, width = x.shape
    if num_rows:
        x = with_unit_stride(x)
        FORWARD.launch(
            lambda c: (cdiv(num_rows, c["ROWS"]),), x.device,
            x, weight, out, rstd, num_rows, width, x.stride(0), eps,
            key=_key(x), HAS_WEIGHT=weight is not None, WIDTH=next_power_of_2(width),
        )  # fmt: skip
    return out, rstd


def backward(grad: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and ``weight``."""
    dx, dweight = _bwd_outputs(grad, x, weight, rstd)
    num_rows, width = x.shape
    if not num_rows:
        return dx, dweight.zero_()
    grad, x = with_unit_stride(grad), with_unit_stride(x)
    walkers = num_walkers(x.device)
    shares = rstd.new_empty(walkers if weight is not None else 0, width)
    BACKWARD.launch(
        lambda _: (walkers,), x.device,
        grad, x, weight, rstd, dx, shares, num_rows, width, grad.stride(0), x.stride(0),
        key=_key(x), HAS_WEIGHT=weight is not None, WIDTH=next_power_of_2(width),
    )  # fmt: skip
    return dx, dweight if weight is None else shares.sum(0).to(weight.dtype)


def _key(x: Tensor) -> MetaParameters:
    return {"width": next_power_of_2(x.shape[1]), "bytes": x.element_size()}
