"""SumKronLinear in Triton, forward: one kernel, in which zᵀ x never leaves the chip.

A program owns a few samples, as many as fill a tile of ROWS rows with their M tokens each, and up to 256 features of
the output. It takes TERMS terms at a time, whose z stays in shared memory, and walks over the input features: FEATURES
of all its samples' x in one tile [S, samples FEATURES], mixed at once to [TERMS M, samples FEATURES], rounded once to
the dtype of x, turned to [samples M, TERMS FEATURES], and multiplied with as many rows of w. The sum over terms and
features is that of the second product, in fp32.

Where this would not pay, the forward is the reference's two matmuls (`fusion` has the rule).
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, cdiv, config, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride

from .boundary import _fwd_outputs
from .fusion import COLUMNS, column_blocks, fuses
from .reference import sum_kron_linear_reference

SHARED = (166_912, 232_448)  # bytes that a program may have on sm_80, and on sm_90 and sm_100


@triton.jit
def sum_kron_linear_fwd_kernel(
    x, z, w, out, batch, in_dim, out_dim, x_sample, x_token, w_term, w_feature,
    R: tl.constexpr, S: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr, OUT: tl.constexpr, COLS: tl.constexpr,
    ROWS: tl.constexpr, TERMS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """out[b] = sum over r of z_r x_b w_r with z [R, M, S] dense, for ROWS / OUT samples and COLS columns."""
    SAMPLES: tl.constexpr = ROWS // OUT
    blocks = tl.cdiv(out_dim, COLS)  # those of the same samples run at the same time
    first = (tl.program_id(0) // blocks).to(tl.int64) * SAMPLES
    columns = tl.program_id(0) % blocks * COLS + tl.arange(0, COLS)
    tokens = tl.arange(0, TOKENS)
    sample = first + tl.arange(0, SAMPLES * FEATURES) // FEATURES
    feature = tl.arange(0, SAMPLES * FEATURES) % FEATURES
    x += tokens.to(tl.int64)[:, None] * x_token + (sample * x_sample + feature)[None, :]
    x_inside = (tokens < S)[:, None] & (sample < batch)[None, :]
    mixing_row = tl.arange(0, TERMS * OUT)
    depth = tl.arange(0, TERMS * FEATURES)
    w += (depth // FEATURES).to(tl.int64)[:, None] * w_term + (depth % FEATURES).to(tl.int64)[:, None] * w_feature
    w += columns[None, :]

    total = tl.zeros([ROWS, COLS], tl.float32)
    for first_term in range(0, R, TERMS):
        term, token_out = first_term + mixing_row // OUT, mixing_row % OUT
        z_inside = ((term < R) & (token_out < M))[:, None] & (tokens < S)[None, :]
        mixing = tl.load(z + (term * M + token_out)[:, None] * S + tokens[None, :], mask=z_inside, other=0.0)
        w_of_terms = w + tl.cast(first_term, tl.int64) * w_term
        kept_terms = first_term + depth // FEATURES < R
        for start in range(0, in_dim, FEATURES):
            tile = tl.load(x + start, mask=x_inside & (start + feature < in_dim)[None, :], other=0.0)
            w_inside = (kept_terms & (start + depth % FEATURES < in_dim))[:, None] & (columns < out_dim)[None, :]
            weights = tl.load(w_of_terms + tl.cast(start, tl.int64) * w_feature, mask=w_inside, other=0.0)
            mixed = tl.dot(mixing, tile).to(tile.dtype)
            mixed = tl.permute(tl.reshape(mixed, [TERMS, OUT, SAMPLES, FEATURES]), [2, 1, 0, 3])
            total = tl.dot(tl.reshape(mixed, [ROWS, TERMS * FEATURES]), weights, total)

    row = tl.arange(0, ROWS)
    kept = (first + row // OUT < batch) & (row % OUT < M)
    places = ((first + row // OUT) * M + row % OUT) * out_dim
    inside = kept[:, None] & (columns < out_dim)[None, :]
    tl.store(out + places[:, None] + columns[None, :], total.to(out.dtype.element_ty), mask=inside)


def _shared_bytes(key: MetaParameters, tiles: tuple[int, int, int, int]) -> tuple[int, int]:
    """Shared memory of a program on sm_80, where the product reads a stage from registers, and on later GPUs."""
    rows, terms, features, stages = tiles
    tokens, out, columns = int(key["tokens"]), int(key["out"]), int(key["columns"])
    kept = terms * out * tokens + rows * terms * features
    stage = tokens * rows // out * features + terms * features * columns
    return 2 * (kept + (stages - 1) * stage), 2 * (kept + stages * stage)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """No default spills; wgmma runs both products, and cp.async feeds them.

    Where 128 rows can be had, L2 delivers w half as often as for 64: with 32 tokens out and 128 or more in (sm_90: 250
    registers, one program a multiprocessor). With fewer out, tiles of more samples' x lie side by side, and 128 rows
    spill on sm_90; with more out they spill on sm_100, with fewer in on sm_80. 64 rows take 126 to 208 registers.
    """
    tokens, out, terms = int(key["tokens"]), int(key["out"]), int(key["terms"])
    features = 32 if out >= 64 else 16
    small = ((64, 128, features, 2), (64, 64, features, 3), (64, 64, features, 2), (64, 32, 16, 2))
    large = ((128, 128, 16, 2), (128, 64, 16, 3), (128, 64, 16, 2))
    tiles = {
        (max(rows, out), min(terms, max(1, mixing_rows // out)), features, stages): None
        for rows, mixing_rows, features, stages in ((*large, *small) if out == 32 and tokens >= 128 else small)
    }
    fitting = [t for t in tiles if all(has <= limit for has, limit in zip(_shared_bytes(key, t), SHARED, strict=True))]
    return [
        config(num_warps=8, num_stages=stages, ROWS=rows, TERMS=together, FEATURES=features)
        for rows, together, features, stages in fitting
    ]


FORWARD = Kernel(sum_kron_linear_fwd_kernel, _configs)


def forward(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """[B, M, E]."""
    (batch, num_in, in_dim), (num_terms, _, num_out), out_dim = x.shape, z.shape, w.shape[2]
    if not fuses(num_in, num_out, out_dim, x.dtype):
        return sum_kron_linear_reference(x, z, w)
    out = _fwd_outputs(x, z, w)
    x, w, z = with_unit_stride(x), with_unit_stride(w), z.mT.contiguous()
    columns = min(COLUMNS, max(16, next_power_of_2(out_dim)))
    key: MetaParameters = {
        "tokens": max(16, next_power_of_2(num_in)),
        "out": max(8, next_power_of_2(num_out)),
        "terms": next_power_of_2(num_terms),
        "columns": columns,
    }
    FORWARD.launch(
        lambda c: (cdiv(batch, c["ROWS"] // key["out"]) * column_blocks(out_dim),), x.device,
        x, z, w, out, batch, in_dim, out_dim, x.stride(0), x.stride(1), w.stride(0), w.stride(1),
        key=key, R=num_terms, S=num_in, M=num_out, TOKENS=key["tokens"], OUT=key["out"], COLS=columns,
    )  # fmt: skip
    return out
