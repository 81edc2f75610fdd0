"""The GDPA block in Triton, backward: one kernel of its own, and GDPA's for the gradients of keys and values.

As in the forward, a program owns all heads of BLOCK events and passes over them several times, out of the L2 cache: for
what the gradient has in common with o, which RMSNorm takes out; for the gradient of GDPA's output, written down because
GDPA's backward reads it; for each head's attention, whose scores are computed again; and for LN's backward and the
residual. Until then, ``dx`` itself holds the gradient of n.

Or GDPA's backward returns the gradient of n too, with five products in place of seven, and the norms have kernels of
their own before and after it: so `kernel_bwd_parts` does it where GDPA's backward has a form for Hopper. On an H200,
all gradients of 256 keys took 4.35 ms in parts and 5.05 in one with six heads of 64 (4.68 in parts with the plain form,
in another run), and 6.6 and 7.8 with four heads of 128. Since n is saved in place of x, parts take 3.41 and 5.30.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.activations_device import weights_and_changes
from mfu_kernels.boundary import apart
from mfu_kernels.gdpa.kernel_bwd import backward_into
from mfu_kernels.gdpa.kernel_sm90 import fits
from mfu_kernels.gdpa.tiles import key_of, load_tile, store_tile
from mfu_kernels.launching import Kernel, capability, cdiv, config, for_hopper
from mfu_kernels.modes import MetaParameters
from mfu_kernels.precision import matmul_dtype

from .boundary import _bwd_outputs
from .kernel import block_of_events, runs_as_constants, with_rows_outside
from .kernel_bwd_parts import backward_in_parts


@triton.jit
def gdpa_block_bwd_kernel(
    grad, passed, k, v, offsets, normed, inner, statistics, dx, dattended, sums,
    num_events, num_keys, max_length, scale, k_strides, v_strides,
    H: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, G_ROW: tl.constexpr, G_HEAD: tl.constexpr,
    K_KEY: tl.constexpr, V_KEY: tl.constexpr,
    BOUNDS: tl.constexpr, NAMES: tl.constexpr, SCALED: tl.constexpr, NEEDS_X: tl.constexpr,
    PASSED: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """``dattended``, the gradient of o; if NEEDS_X, also dx, with ``passed`` if PASSED. ``sums`` is scratch."""
    FEATURES: tl.constexpr = H * DIM
    if not SCALED:
        scale = 1.0
    row, first, left = block_of_events(offsets, max_length, BLOCK)
    if left > 0:
        events = tl.arange(0, BLOCK).to(tl.int64)
        grad += first * G_ROW
        normed += first * FEATURES
        inner += first * FEATURES
        dattended += first * FEATURES
        statistics += first
        sums += first
        along = tl.zeros([BLOCK], tl.float32)
        for head in range(H):
            g = load_tile(grad + head * G_HEAD, events, G_ROW, left, DIM, WIDTH).to(tl.float32)
            o = load_tile(inner + head * DIM, events, FEATURES, left, DIM, WIDTH).to(tl.float32)
            along += tl.sum(g * o, axis=1)
        tl.store(sums + events, along / FEATURES, mask=events < left)
        tl.debug_barrier()  # threads read what others of this program wrote
        if NEEDS_X:
            dx += first * FEATURES
            k += row * k_strides[0]
            v += row * v_strides[0]
            total = tl.zeros([BLOCK], tl.float32)
            aligned = tl.zeros([BLOCK], tl.float32)
        for run in tl.static_range(len(NAMES)):
            for head in range(BOUNDS[run], BOUNDS[run + 1]):
                # Figures of events are read for each head, and barriers keep loads from moving together: registers
                # are the scores'.
                along = tl.load(sums + events, mask=events < left, other=0.0)
                rrms = tl.load(statistics + events, mask=events < left, other=0.0)
                g = load_tile(grad + head * G_HEAD, events, G_ROW, left, DIM, WIDTH).to(tl.float32)
                o = load_tile(inner + head * DIM, events, FEATURES, left, DIM, WIDTH).to(tl.float32)
                do = g * rrms[:, None] - o * (along * rrms * rrms * rrms)[:, None]
                store_tile(dattended + head * DIM, events, FEATURES, left, do, DIM, WIDTH)
                if NEEDS_X:
                    dn = do
                    if SCALED:
                        do *= scale
                    do = do.to(k.dtype.element_ty)
                    tl.debug_barrier()
                    queries = load_tile(normed + head * DIM, events, FEATURES, left, DIM, WIDTH)
                    if SCALED:
                        queries = (queries.to(tl.float32) * scale).to(queries.dtype)
                    k_of_head = k + tl.cast(head, tl.int64) * k_strides[2]
                    v_of_head = v + tl.cast(head, tl.int64) * v_strides[2]
                    for first_key in range(0, num_keys, KEYS):
                        block = first_key + tl.arange(0, KEYS)
                        keys = load_tile(k_of_head, block, K_KEY, num_keys, DIM, WIDTH)
                        values = load_tile(v_of_head, block, V_KEY, num_keys, DIM, WIDTH)
                        scores = tl.dot(queries, keys.T, input_precision="ieee")
                        change = tl.dot(do, values.T, input_precision="ieee")
                        _, change = weights_and_changes(scores, change, tl.constexpr(NAMES[run]), keys.dtype)
                        dn = tl.dot(change, keys, dn, input_precision="ieee")
                    store_tile(dx + head * DIM, events, FEATURES, left, dn, DIM, WIDTH)
                    # Read again, which costs fewer registers than keeping it.
                    n = load_tile(normed + head * DIM, events, FEATURES, left, DIM, WIDTH).to(tl.float32)
                    total += tl.sum(dn, axis=1)
                    aligned += tl.sum(dn * n, axis=1)
        if NEEDS_X:
            tl.debug_barrier()
            # Through memory, so that the last pass keeps the layout of its loads.
            tl.store(sums + events, total / FEATURES, mask=events < left)
            tl.store(sums + num_events + events, aligned / FEATURES, mask=events < left)

            tl.debug_barrier()
            total = tl.load(sums + events, mask=events < left, other=0.0)
            aligned = tl.load(sums + num_events + events, mask=events < left, other=0.0)
            rstd = tl.load(statistics + num_events + events, mask=events < left, other=0.0)
            aligned *= rstd
            constant = total * rstd
            if PASSED:
                passed += first * FEATURES
            for head in range(H):
                g = load_tile(grad + head * G_HEAD, events, G_ROW, left, DIM, WIDTH).to(tl.float32)
                n = load_tile(normed + head * DIM, events, FEATURES, left, DIM, WIDTH).to(tl.float32)
                dn = load_tile(dx + head * DIM, events, FEATURES, left, DIM, WIDTH).to(tl.float32)
                moved = (g - constant[:, None]) + dn * rstd[:, None] - n * aligned[:, None]
                if PASSED:
                    moved += load_tile(passed + head * DIM, events, FEATURES, left, DIM, WIDTH).to(tl.float32)
                store_tile(dx + head * DIM, events, FEATURES, left, moved, DIM, WIDTH)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """The default for heads of 64 and 128 spills on none of sm_80, sm_90 and sm_100 (up to 254 registers on sm_90).

    Small programs come first: one's passes over memory take place during another's products. On an H200, in a form with
    fewer instructions that erred too much, 64 events on 4 warps took 1.6 ms where 128 on 8 took 1.9 (256 keys, heads of
    64), and 5.5 in place of 6.5 ms with heads of 128.
    """
    if key["bytes"] == 4:
        return [config(BLOCK=size, KEYS=size) for size in ((32, 16) if int(key["d"]) <= 32 else (16,))]
    if int(key["d"]) == 256:
        return [config(num_warps=8, num_stages=2, BLOCK=64, KEYS=16)]
    tiles = [(64, 32, 4, 3), (64, 32, 4, 2), (64, 64, 4, 2), (128, 32, 8, 3), (64, 64, 8, 2)]
    if capability() < 90 and int(key["d"]) < 128:
        tiles.insert(0, (64, 32, 4, 2))
    elif capability() >= 100 and int(key["d"]) in (16, 128):
        tiles.insert(0, (64, 64, 8, 2))
    return [config(num_warps=w, num_stages=stages, BLOCK=m, KEYS=n) for m, n, w, stages in dict.fromkeys(tiles)]


BACKWARD = Kernel(gdpa_block_bwd_kernel, _configs)


MOST_FEATURES = 4096  # of an event, which the norms' kernels hold in registers


def in_parts(x: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether all gradients are made in parts: where GDPA's backward has a form for Hopper, and x is of k's dtype.

    ``x``, or what is as x is and lies dense.
    """
    few_enough = k.shape[2] * k.shape[3] <= MOST_FEATURES
    return few_enough and for_hopper(k.device) and x.dtype == matmul_dtype(k) and fits(x, k, v)


def backward(
    grad: Tensor, passed: Tensor | None, k: Tensor, v: Tensor, offsets: Tensor, normed: Tensor, inner: Tensor,
    statistics: Tensor, activation: list[str], scale: float, max_length: int, needs: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient of x, plus what is ``passed``, empty if it is not needed; those of ``k`` and ``v`` side by side."""
    dx, dkv = _bwd_outputs(grad, passed, k, needs)
    num_events, num_heads, d = grad.shape
    if not num_events:
        return dx, dkv.zero_()
    grad, k, v = (with_rows_outside(tensor) for tensor in (grad, k, v))
    if all(needs) and in_parts(dx, k, v):
        saved = normed, inner, statistics
        backward_in_parts(grad, passed, k, v, offsets, *saved, dx, dkv, activation, scale, max_length)
        return dx, dkv
    dattended = k.new_empty(grad.shape)
    key = key_of(normed, k)
    BACKWARD.launch(
        lambda c: (k.shape[0] * cdiv(max_length, c["BLOCK"]),), k.device,
        grad, None if passed is None else passed.contiguous(), k, v, offsets, normed, inner, statistics,
        dx, dattended, statistics.new_empty(2, num_events),
        num_events, k.shape[1], max_length, scale, k.stride()[:3], v.stride()[:3],
        key=key, H=num_heads, DIM=d, WIDTH=key["d"], G_ROW=grad.stride(0), G_HEAD=grad.stride(1),
        K_KEY=k.stride(1), V_KEY=v.stride(1),
        **runs_as_constants(activation), SCALED=scale != 1,
        NEEDS_X=needs[0], PASSED=passed is not None,
    )  # fmt: skip
    _, needs_k, needs_v = needs
    if needs_k or needs_v:
        empty, (dk, dv) = k.new_empty(0), apart(dkv, (needs_k, needs_v), dim=2)
        grads = (empty, empty if dk is None else dk, empty if dv is None else dv)
        backward_into(grads, dattended, normed, k, v, offsets, scale, activation, max_length, [False, needs_k, needs_v])
    return dx, dkv
