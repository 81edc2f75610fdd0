"""LayerNorm in Triton: a few rows a program, each in registers; statistics in fp32, in two passes over registers.

Backward walks the rows with a fixed number of programs. Each adds up its share of the gradients of weight and bias in
registers, element by element, and reduces it once at the end: a sum over rows inside the loop would cross warps through
shared memory at every step. The shares are summed after, in a fixed order, without atomics.
"""

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, cdiv, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import num_walkers, row_configs, walking_configs, with_unit_stride

from .boundary import _bwd_outputs, _fwd_outputs


@triton.jit
def _load(x, residual, rows, columns, inside, x_stride, residual_stride, HAS_RESIDUAL: tl.constexpr):
    """x + residual in fp32, zeros outside."""
    values = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        added = tl.load(residual + rows[:, None] * residual_stride + columns[None, :], mask=inside, other=0.0)
        values += added.to(tl.float32)
    return values


@triton.jit
def layer_norm_fwd_kernel(
    x, weight, bias, residual, out, mean, rstd, num_rows, width, x_stride, residual_stride, eps,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out = (y - mean) / sqrt(var + eps) * weight + bias with y = x + residual, for ROWS rows of ``width`` <= WIDTH."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    kept = columns < width
    inside = (rows < num_rows)[:, None] & kept[None, :]
    values = _load(x, residual, rows, columns, inside, x_stride, residual_stride, HAS_RESIDUAL)
    average = tl.sum(values, axis=1) / width
    centred = tl.where(inside, values - average[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=1) / width + eps)
    normed = centred * inverse[:, None]
    if HAS_WEIGHT:
        normed *= tl.load(weight + columns, mask=kept, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        normed += tl.load(bias + columns, mask=kept, other=0.0).to(tl.float32)[None, :]
    tl.store(out + rows[:, None] * width + columns[None, :], normed.to(out.dtype.element_ty), mask=inside)
    tl.store(mean + rows, average, mask=rows < num_rows)
    tl.store(rstd + rows, inverse, mask=rows < num_rows)


@triton.jit
def layer_norm_bwd_kernel(
    grad, x, weight, residual, mean, rstd, dx, dresidual, shares,
    num_rows, width, grad_stride, group, group_stride, x_stride, residual_stride,
    GROUPED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    NEEDS_X: tl.constexpr, NEEDS_RESIDUAL: tl.constexpr, NEEDS_AFFINE: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    """dy = rstd (g w - mean(g w) - x̂ mean(g w x̂)); each program's share of dw = sum of g x̂ and db = sum of g.

    If GROUPED, every ``group`` rows of g begin ``group_stride`` after those before.
    """
    columns = tl.arange(0, WIDTH)
    kept = columns < width
    if HAS_WEIGHT:
        scale = tl.load(weight + columns, mask=kept, other=0.0).to(tl.float32)[None, :]
    if NEEDS_AFFINE:
        dweight = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
        dbias = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for start in tl.range(first, num_rows, tl.num_programs(0) * ROWS, num_stages=num_stages):
        rows = start + tl.arange(0, ROWS)
        inside = (rows < num_rows)[:, None] & kept[None, :]
        if GROUPED:
            begins = rows // group * group_stride + rows % group * grad_stride
        else:
            begins = rows * grad_stride
        gradient = tl.load(grad + begins[:, None] + columns[None, :], mask=inside, other=0.0)
        gradient = gradient.to(tl.float32)
        values = _load(x, residual, rows, columns, inside, x_stride, residual_stride, HAS_RESIDUAL)
        average = tl.load(mean + rows, mask=rows < num_rows, other=0.0)[:, None]
        inverse = tl.load(rstd + rows, mask=rows < num_rows, other=0.0)[:, None]
        normed = tl.where(inside, (values - average) * inverse, 0.0)
        if NEEDS_AFFINE:
            dweight += gradient * normed
            dbias += gradient
        if NEEDS_X or NEEDS_RESIDUAL:
            if HAS_WEIGHT:
                gradient *= scale
            projection = tl.sum(gradient * normed, axis=1)[:, None] / width
            change = inverse * (gradient - tl.sum(gradient, axis=1)[:, None] / width - normed * projection)
            places = rows[:, None] * width + columns[None, :]
            if NEEDS_X:
                tl.store(dx + places, change.to(dx.dtype.element_ty), mask=inside)
            if NEEDS_RESIDUAL:
                tl.store(dresidual + places, change.to(dresidual.dtype.element_ty), mask=inside)
    if NEEDS_AFFINE:
        share = shares + tl.program_id(0).to(tl.int64) * width + columns
        tl.store(share, tl.sum(dweight, axis=0), mask=kept)
        tl.store(share + tl.num_programs(0).to(tl.int64) * width, tl.sum(dbias, axis=0), mask=kept)


FORWARD = Kernel(layer_norm_fwd_kernel, row_configs)
BACKWARD = Kernel(layer_norm_bwd_kernel, walking_configs)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The normed rows [N, D] of ``x`` + ``residual`` [N, D], and mean and 1 / deviation of each, fp32 [N]."""
    out, mean, rstd = _fwd_outputs(x, weight, bias, residual, eps)
    num_rows, width = x.shape
    if num_rows:
        x = with_unit_stride(x)
        added, added_stride = _dense_rows(residual)
        FORWARD.launch(
            lambda c: (cdiv(num_rows, c["ROWS"]),), x.device,
            x, weight, bias, added, out, mean, rstd, num_rows, width, x.stride(0), added_stride, eps,
            key=_key(x, residual), WIDTH=next_power_of_2(width),
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
        )  # fmt: skip
    return out, mean, rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, residual: Tensor | None, mean: Tensor, rstd: Tensor,
    needs_x: bool, needs_residual: bool, needs_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``x``, of a residual of another dtype, and of weight and bias [2, D], those that are needed."""
    dx, dresidual, daffine = _bwd_outputs(grad, x, weight, residual, mean, rstd, needs_x, needs_residual, needs_affine)
    num_rows, width = x.shape
    if not num_rows:
        return dx, dresidual, daffine.zero_()
    x = with_unit_stride(x)
    grad, group = _in_groups(grad)
    added, added_stride = _dense_rows(residual)
    walkers = num_walkers(x.device)
    shares = rstd.new_empty(len(daffine), walkers, width)
    BACKWARD.launch(
        lambda _: (walkers,), x.device,
        grad, x, weight, added, mean, rstd, dx, dresidual, shares,
        num_rows, width, grad.stride(-2), group, grad.stride(0), x.stride(0), added_stride,
        key=_key(x, residual), GROUPED=group > 0, HAS_WEIGHT=weight is not None, HAS_RESIDUAL=residual is not None,
        NEEDS_X=len(dx) > 0, NEEDS_RESIDUAL=len(dresidual) > 0, NEEDS_AFFINE=needs_affine,
        WIDTH=next_power_of_2(width),
    )  # fmt: skip
    return dx, dresidual, shares.sum(1)


def _dense_rows(residual: Tensor | None) -> tuple[Tensor | None, int]:
    """The residual with a dense last dimension, and the stride of its rows."""
    if residual is None:
        return None, 0
    dense = with_unit_stride(residual)
    return dense, dense.stride(0)


def _in_groups(grad: Tensor) -> tuple[Tensor, int]:
    """Gradients with dense rows: [N, D] and 0, or [G, n, D], as a slice of tokens lies, and n."""
    if grad.ndim == 3 and grad.stride(2) == 1 and grad.stride(0) != grad.shape[1] * grad.stride(1):
        return grad, grad.shape[1]
    return with_unit_stride(grad.reshape(-1, grad.shape[-1])), 0


def _key(x: Tensor, residual: Tensor | None) -> MetaParameters:
    return {"width": next_power_of_2(x.shape[1]), "bytes": x.element_size(), "residual": residual is not None}
