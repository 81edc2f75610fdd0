"""The GDPA block in Triton, forward: one kernel, and a program owns all heads of BLOCK events of one row.

The norms run over all heads, so nothing less than whole events can be finished. A program therefore passes over its
events three times, the second and third time out of the L2 cache: for the statistics of LN, for each head's attention,
which leaves o = GDPA(n) + n in memory, and for out = x + o / rms(o). Keys and values are read again by every program of
a row. Where no backward follows, ``out`` itself holds o meanwhile, and device memory sees x, k, v and ``out`` once.

A backward needs o and not out - x, whose rounding grows with x; and n, in place of x. o is rounded to x's dtype once;
its rms, n and the accumulators are of fp32.

For Hopper, `kernel_sm90` has a form for 16 bits in which several warpgroups share what is read of keys and values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.activations_device import weights_of
from mfu_kernels.gdpa.tiles import key_of, load_tile, row_of, runs_of_heads, store_tile
from mfu_kernels.launching import Kernel, capability, cdiv, config, for_hopper
from mfu_kernels.modes import MetaParameters

from . import kernel_sm90
from .boundary import _fwd_outputs


@triton.jit
def block_of_events(offsets, max_length, BLOCK: tl.constexpr):
    """This program's jagged row, its first event in it, and how many events of the row are left from there on."""
    blocks_per_row = tl.cdiv(max_length, BLOCK)
    row = (tl.program_id(0) // blocks_per_row).to(tl.int64)
    start, length = row_of(offsets, row)
    skipped = tl.program_id(0) % blocks_per_row * BLOCK
    return row, start + skipped, length - skipped


@triton.jit
def _layer_norm_statistics(
    x, events, left, eps,
    H: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, X_ROW: tl.constexpr, X_HEAD: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / std of each event over all heads, whose means and squared deviations are merged one after another.

    cf. Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (1979).
    """
    kept = (tl.arange(0, WIDTH) < DIM)[None, :]
    mean = tl.zeros([events.shape[0]], tl.float32)
    squares = tl.zeros([events.shape[0]], tl.float32)
    for head in range(H):
        tile = load_tile(x + head * X_HEAD, events, X_ROW, left, DIM, WIDTH).to(tl.float32)
        of_head = tl.sum(tile, axis=1) / DIM
        deviations = tl.where(kept, tile - of_head[:, None], 0.0)
        step = of_head - mean
        mean += step / (head + 1)
        squares += tl.sum(deviations * deviations, axis=1) + step * step * (DIM * head / (head + 1))
    return mean, tl.rsqrt(squares / (H * DIM) + eps)


@triton.jit
def gdpa_block_fwd_kernel(
    x, k, v, offsets, out, normed, inner, statistics,
    num_events, num_keys, max_length, scale, eps, k_strides, v_strides,
    H: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    X_ROW: tl.constexpr, X_HEAD: tl.constexpr, K_KEY: tl.constexpr, V_KEY: tl.constexpr,
    BOUNDS: tl.constexpr, NAMES: tl.constexpr, SCALED: tl.constexpr, SAVE: tl.constexpr,
    BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """out = x + o / rms(o) with o = GDPA(n, k, v) + n and n = LN(x); ``inner`` holds o and may be ``out``.

    If SAVE, n goes to ``normed``.
    """
    FEATURES: tl.constexpr = H * DIM
    row, first, left = block_of_events(offsets, max_length, BLOCK)
    if left > 0:
        events = tl.arange(0, BLOCK).to(tl.int64)
        kept = (tl.arange(0, WIDTH) < DIM)[None, :]
        x += first * X_ROW
        out += first * FEATURES
        inner += first * FEATURES
        k += row * k_strides[0]
        v += row * v_strides[0]

        mean, rstd = _layer_norm_statistics(x, events, left, eps, H, DIM, WIDTH, X_ROW, X_HEAD)
        squares = tl.zeros([BLOCK], tl.float32)
        for run in tl.static_range(len(NAMES)):
            for head in range(BOUNDS[run], BOUNDS[run + 1]):
                tile = load_tile(x + head * X_HEAD, events, X_ROW, left, DIM, WIDTH).to(tl.float32)
                o = (tile - mean[:, None]) * rstd[:, None]
                queries = (o * scale if SCALED else o).to(k.dtype.element_ty)
                k_of_head = k + tl.cast(head, tl.int64) * k_strides[2]
                v_of_head = v + tl.cast(head, tl.int64) * v_strides[2]
                for first_key in range(0, num_keys, KEYS):
                    block = first_key + tl.arange(0, KEYS)
                    keys = load_tile(k_of_head, block, K_KEY, num_keys, DIM, WIDTH)
                    values = load_tile(v_of_head, block, V_KEY, num_keys, DIM, WIDTH)
                    scores = tl.dot(queries, keys.T, input_precision="ieee")
                    weights = weights_of(scores, tl.constexpr(NAMES[run]), values.dtype)
                    o = tl.dot(weights, values, o, input_precision="ieee")
                if DIM < WIDTH:
                    o = tl.where(kept, o, 0.0)
                squares += tl.sum(o * o, axis=1)
                store_tile(inner + head * DIM, events, FEATURES, left, o, DIM, WIDTH)
        rrms = tl.rsqrt(squares / FEATURES + eps)

        tl.debug_barrier()  # threads read what others of this program wrote
        if SAVE:
            normed += first * FEATURES
        for head in range(H):
            tile = load_tile(x + head * X_HEAD, events, X_ROW, left, DIM, WIDTH).to(tl.float32)
            if SAVE:  # here, where registers are to spare
                n = (tile - mean[:, None]) * rstd[:, None]
                store_tile(normed + head * DIM, events, FEATURES, left, n, DIM, WIDTH)
            stored = load_tile(inner + head * DIM, events, FEATURES, left, DIM, WIDTH).to(tl.float32)
            store_tile(out + head * DIM, events, FEATURES, left, tile + stored * rrms[:, None], DIM, WIDTH)
        if SAVE:
            statistics += first
            tl.store(statistics + events, rrms, mask=events < left)
            tl.store(statistics + num_events + events, rstd, mask=events < left)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """The default spills on none of sm_80, sm_90 and sm_100 with heads of 128.

    Programs of 4 warps hide each other's norms: on an H200, 64 events on 4 warps took 0.89 ms where 128 on 8 took 0.98
    (256 keys, heads of 64), and 2.8 in place of 3.4 ms with heads of 128, where 168 registers make them three a
    multiprocessor (with 64 keys they spill 16 bytes). Products in fp32 have no tensor core, and hold whole heads in
    registers: with heads of 128 and more they spill. The configs of `kernel_sm90` come first where it takes the
    tensors: 1.47 in place of 1.75 ms with heads of 64, 2.07 in place of 2.68 with heads of 128, before it wrote n.
    """
    if key["bytes"] == 4:
        return [config(BLOCK=size, KEYS=size) for size in ((32, 16) if int(key["d"]) <= 32 else (16,))]
    if int(key["d"]) == 256:
        tiles = [(64, 64, 8, 2), (64, 32, 8, 2)]
    else:
        tiles = [(64, 32, 4, 3), (128, 32, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 3), (64, 128, 4, 2)]
    configs = [config(num_warps=w, num_stages=stages, BLOCK=m, KEYS=n) for m, n, w, stages in tiles]
    if int(key["d"]) == 128:
        three = config(num_warps=4, num_stages=3, BLOCK=64, KEYS=32, maxnreg=168)
        configs.insert(0 if capability() == 90 and int(key["keys"]) > 64 else len(configs), three)
    if "features" in key:
        configs[:0] = kernel_sm90.configs(int(key["features"]), int(key["d"]), int(key["keys"]))
    return configs


SM90 = kernel_sm90.gdpa_block_fwd_sm90_kernel, kernel_sm90.arguments
FORWARD = Kernel(gdpa_block_fwd_kernel, _configs, forms={"GROUPS": SM90})


def with_rows_outside(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension is dense and its first has the largest stride, else a copy.

    The other strides are constants of the kernels, which a stride that depends on a batch's size is not.
    """
    *others, last = tensor.stride()
    return tensor if last == 1 and others[0] == max(others) else tensor.contiguous()


def runs_as_constants(activation: list[str]) -> dict[str, tuple[int, ...] | tuple[str, ...]]:
    """Runs of heads with one activation: NAMES[i] is that of the heads from BOUNDS[i] to BOUNDS[i + 1].

    Two tuples of one type each, because Triton 3.6 takes no mixed one.
    """
    firsts, _, names = zip(*runs_of_heads(activation), strict=True)
    return {"BOUNDS": (*firsts, len(activation)), "NAMES": names}


def forward(
    x: Tensor, k: Tensor, v: Tensor, offsets: Tensor,
    activation: list[str], scale: float, eps: float, max_length: int, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The block's output [T, H, d], and if ``save``, n, o and the statistics that a backward needs."""
    out, normed, inner, statistics = _fwd_outputs(x, k, save)
    num_events, num_heads, d = x.shape
    if num_events:
        x, k, v = (with_rows_outside(tensor) for tensor in (x, k, v))
        key: MetaParameters = {**key_of(x, k), "bytes": k.element_size()}
        if for_hopper(x.device) and kernel_sm90.fits(x, k, v):
            key = {**key, "features": num_heads * d}

        def grid(chosen: Mapping[str, Any]) -> tuple[int]:
            if "GROUPS" in chosen:
                return (k.shape[0] * kernel_sm90.programs_of_row(k.shape[0], max_length, x.device, chosen),)
            return (k.shape[0] * cdiv(max_length, chosen["BLOCK"]),)

        FORWARD.launch(
            grid, x.device,
            x, k, v, offsets, out, normed, inner if save else out, statistics, num_events, k.shape[1], max_length,
            scale, eps, k.stride()[:3], v.stride()[:3],
            key=key, H=num_heads, DIM=d, WIDTH=key["d"],
            X_ROW=x.stride(0), X_HEAD=x.stride(1), K_KEY=k.stride(1), V_KEY=v.stride(1),
            **runs_as_constants(activation), SCALED=scale != 1, SAVE=save,
        )  # fmt: skip
    return out, normed, inner, statistics
