"""Look-up in Triton: a program copies a few rows, and reads nothing for an id that is none of its field's.

Whole rows are in flight at once, 16 bytes an access. What is written is not read again here and goes past the caches
first, so that the table's rows stay in L2.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, cdiv, config, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride

from .boundary import _fwd_outputs


@triton.jit
def rows_of_ids(ids, offsets, lookups, num_lookups, event_stride, field_stride, FIELDS: tl.constexpr):
    """The row of the table that each of ``lookups`` asks for, and whether its id is one of its field's."""
    events, fields = lookups // FIELDS, lookups % FIELDS
    own = tl.load(ids + events * event_stride + fields * field_stride, mask=lookups < num_lookups, other=-1)
    own = own.to(tl.int64)
    rows = tl.load(offsets + fields) + own
    return rows, (own >= 0) & (rows < tl.load(offsets + fields + 1))


@triton.jit
def embedding_fwd_kernel(
    weight, ids, offsets, out, num_lookups, width, weight_stride, event_stride, field_stride,
    FIELDS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out = the rows of ROWS look-ups, of ``width`` <= WIDTH, or NaN."""
    lookups = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    kept = (columns < width)[None, :]
    rows, known = rows_of_ids(ids, offsets, lookups, num_lookups, event_stride, field_stride, FIELDS)
    places = weight + rows[:, None] * weight_stride + columns[None, :]
    values = tl.load(places, mask=known[:, None] & kept, other=float("nan"), eviction_policy="evict_last")
    inside = (lookups < num_lookups)[:, None] & kept
    tl.store(out + lookups[:, None] * width + columns[None, :], values, mask=inside, cache_modifier=".cs")


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """Rows and warps a program, 16 to 64 values a thread."""
    width = int(key["width"])
    configs = [
        config(num_warps=warps, ROWS=rows)
        for warps in (4, 2, 8, 1)
        for rows in (8, 16, 4, 32, 64, 2, 128, 256, 1)
        if 16 <= rows * width // (32 * warps) <= 64
    ]
    return configs or [config(num_warps=16, ROWS=1)]


FORWARD = Kernel(embedding_fwd_kernel, _configs)


def forward(weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
    """The rows [N, F, w] of ``weight`` [R, w] that ``ids`` [N, F] ask for."""
    out = _fwd_outputs(weight, ids, offsets)
    num_lookups, width = ids.numel(), weight.shape[1]
    if num_lookups:
        weight = with_unit_stride(weight)
        FORWARD.launch(
            lambda c: (cdiv(num_lookups, c["ROWS"]),), weight.device,
            weight, ids, offsets.contiguous(), out, num_lookups, width, weight.stride(0), *ids.stride(),
            key={"width": next_power_of_2(width), "bytes": weight.element_size()},
            FIELDS=ids.shape[1], WIDTH=next_power_of_2(width),
        )  # fmt: skip
    return out
