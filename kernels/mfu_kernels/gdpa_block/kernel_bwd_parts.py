"""The GDPA block's backward in three parts: both norms' kernels, and between them GDPA's backward with all gradients.

GDPA's backward for Hopper holds a head's keys while queries stream past, and makes the gradient of queries of the same
scores as those of keys and values: five products for the seven of `gdpa_block_bwd_kernel`, and an activation less. In
return, tensors of the size of x cross device memory 10 times, not 7, once more with what is passed, and the gradients
of o and of n are rounded to 16 bits on the way. GDPA's backward writes all of n's gradient: that of queries, and that
of o, which it has at hand and n is part of.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.gdpa.kernel_bwd import backward_into
from mfu_kernels.launching import Kernel, config, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import FETCHED_BYTES, num_walkers


@triton.jit
def _load(x, events, columns, inside, stride):
    return tl.load(x + events[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def gdpa_block_before_kernel(
    grad, inner, statistics, dattended, num_events, grad_stride,
    FEATURES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    """``dattended``, the gradient of o through RMSNorm; ROWS events at a time."""
    columns = tl.arange(0, WIDTH)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for start in tl.range(first, num_events, tl.num_programs(0) * ROWS, num_stages=num_stages):
        events = start + tl.arange(0, ROWS)
        known = events < num_events
        inside = known[:, None] & (columns < FEATURES)[None, :]
        g = _load(grad, events, columns, inside, grad_stride)
        o = _load(inner, events, columns, inside, FEATURES)
        rrms = tl.load(statistics + events, mask=known, other=0.0)
        along = tl.sum(g * o, axis=1) / FEATURES
        do = g * rrms[:, None] - o * (along * rrms * rrms * rrms)[:, None]
        places = events[:, None] * FEATURES + columns[None, :]
        tl.store(dattended + places, do.to(dattended.dtype.element_ty), mask=inside)


@triton.jit
def gdpa_block_after_kernel(
    grad, passed, normed, statistics, dx, num_events, grad_stride,
    PASSED: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, num_stages: tl.constexpr,
):  # fmt: skip
    """LN's backward and the residual: ``dx``, which held the gradient of n, with ``passed`` if PASSED."""
    columns = tl.arange(0, WIDTH)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for start in tl.range(first, num_events, tl.num_programs(0) * ROWS, num_stages=num_stages):
        events = start + tl.arange(0, ROWS)
        known = events < num_events
        inside = known[:, None] & (columns < FEATURES)[None, :]
        dn = _load(dx, events, columns, inside, FEATURES)
        n = _load(normed, events, columns, inside, FEATURES)
        rstd = tl.load(statistics + num_events + events, mask=known, other=0.0)[:, None]
        total = tl.sum(dn, axis=1)[:, None] / FEATURES
        aligned = tl.sum(dn * n, axis=1)[:, None] / FEATURES
        moved = _load(grad, events, columns, inside, grad_stride) + rstd * (dn - total - n * aligned)
        if PASSED:
            moved += _load(passed, events, columns, inside, FEATURES)
        places = events[:, None] * FEATURES + columns[None, :]
        tl.store(dx + places, moved.to(dx.dtype.element_ty), mask=inside)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Rows that give a thread 16 to 32 numbers of each tensor. The next ones are on their way, as norms' backward is
    fastest on an H200, where four programs of a multiprocessor have room for four tensors of them."""
    width = int(key["width"])
    sizes = [(rows, warps) for warps in (4, 2, 8) for rows in (4, 8, 2, 16, 1) if 16 <= rows * width / warps / 32 <= 32]
    return [
        config(num_warps=warps, num_stages=stages, ROWS=rows)
        for stages in (3, 2, 1)
        for rows, warps in sizes or [(1, 8)]
        if (stages - 1) * 4 * rows * width * int(key["bytes"]) <= FETCHED_BYTES
    ]


BEFORE = Kernel(gdpa_block_before_kernel, _configs)
AFTER = Kernel(gdpa_block_after_kernel, _configs)


def backward_in_parts(
    grad: Tensor, passed: Tensor | None, k: Tensor, v: Tensor, offsets: Tensor, normed: Tensor, inner: Tensor,
    statistics: Tensor, dx: Tensor, dkv: Tensor, activation: list[str], scale: float, max_length: int,
) -> None:  # fmt: skip
    """Write the gradient of x, plus what is ``passed``, and those of ``k`` and ``v`` side by side."""
    num_events, features = normed.shape[0], normed.shape[1] * normed.shape[2]
    dattended = torch.empty_like(normed)
    dk, dv = dkv.unbind(2)
    grad = grad.flatten(1)  # a copy of heads that do not lie side by side
    key: MetaParameters = {"width": next_power_of_2(features), "bytes": normed.element_size()}
    constants = {"FEATURES": features, "WIDTH": key["width"]}
    walkers = num_walkers(normed.device)
    BEFORE.launch(
        lambda _: (walkers,), normed.device,
        grad, inner, statistics, dattended, num_events, grad.stride(0), key=key, **constants,
    )  # fmt: skip
    options = scale, activation, max_length, [True, True, True]
    backward_into((dx, dk, dv), dattended, normed, k, v, offsets, *options, adds=True)
    AFTER.launch(
        lambda _: (walkers,), normed.device,
        grad, None if passed is None else passed.contiguous(), normed, statistics, dx, num_events, grad.stride(0),
        key=key, PASSED=passed is not None, **constants,
    )  # fmt: skip
