"""GDPA's backward in Triton: five products, no atomics.

One program owns a row and head, or a share of its queries. It walks the queries once for each block of keys, which it
holds in shared memory with their values; their gradients are sums in registers. Scores are computed again, transposed
([keys, queries]), so that weights and their gradients are left operands from registers; only dq = dsᵀ k takes them from
shared memory, as (kᵀ ds)ᵀ, and is complete where one block holds all keys.

Where it takes several walks, each adds to the dq that the walk before wrote, in dq's own memory: a program wrote it
itself and recently, so it is found in L2, and every second walk goes backwards to meet the latest first. That is two
products fewer than separate kernels for dq and for dk and dv. Above MAX_ROUNDED_KEYS keys, dq is summed in fp32 and
rounded once. Where dq is not wanted, each block of keys has a program of its own.

On sm_90 the default holds 255 registers at 128 keys a block, 228 where those are all keys, and spills none. Where 64
keys a block cost no dq, programs of 4 warps are better: two or three fit a multiprocessor, and one multiplies during
another's activation. On Hopper, `kernel_bwd_sm90` has a form of its own for 16 bits, first for heads of 128 with dq.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.activations_device import weights_and_changes, weights_of
from mfu_kernels.launching import Kernel, capability, cdiv, config, for_hopper
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import with_unit_stride

from . import kernel_bwd_sm90
from .boundary import _bwd_outputs
from .kernel import SHARED
from .tiles import key_of, load_tile, num_splits, row_of, runs_of_heads, store_tile

MAX_ROUNDED_KEYS = 1024


@triton.jit
def _walk(
    grad, q, k, v, dq, dk, dv, scale, length, num_keys, first_key, first_tile, splits,
    GRAD_ROW: tl.constexpr, Q_ROW: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr,
    DENSE_ROW: tl.constexpr, SUMS_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr, SCALED: tl.constexpr, NEEDS_Q: tl.constexpr, NEEDS_K: tl.constexpr, NEEDS_V: tl.constexpr,
    ADDS: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr, ONE_WALK: tl.constexpr,
):  # fmt: skip
    """Every ``splits``-th tile of queries against the keys from ``first_key``."""
    FAST: tl.constexpr = q.dtype.element_ty != tl.float32
    PRECISION: tl.constexpr = "tf32" if FAST else "ieee"
    block = first_key + tl.arange(0, KEYS)
    keys = load_tile(k, block, K_ROW, num_keys, DIM, WIDTH)
    values = load_tile(v, block, V_ROW, num_keys, DIM, WIDTH)
    if SCALED:  # once for all scores, and for dq
        keys = (keys.to(tl.float32) * scale).to(keys.dtype)
    sum_k = tl.zeros([KEYS, WIDTH], tl.float32)
    sum_v = tl.zeros([KEYS, WIDTH], tl.float32)
    tiles = tl.cdiv(tl.maximum(tl.cdiv(length, TILE) - first_tile, 0), splits)
    for i in range(0, tiles):
        if ONE_WALK:
            tile = first_tile + i * splits
        else:
            tile = first_tile + tl.where((first_key // KEYS) % 2 == 1, tiles - 1 - i, i) * splits
        rows = tile * TILE + tl.arange(0, TILE)
        queries = load_tile(q, rows, Q_ROW, length, DIM, WIDTH)
        grads = load_tile(grad, rows, GRAD_ROW, length, DIM, WIDTH)
        scores = tl.dot(keys, queries.T, input_precision=PRECISION)
        if NEEDS_Q or NEEDS_K:
            change = tl.dot(values, grads.T, input_precision=PRECISION)
            weights, change = weights_and_changes(scores, change, ACTIVATION, queries.dtype)
        else:
            weights = weights_of(scores, ACTIVATION, queries.dtype)
        if NEEDS_V:
            sum_v = tl.dot(weights, grads, sum_v, input_precision=PRECISION)
        if NEEDS_K:
            sum_k = tl.dot(change, queries, sum_k, input_precision=PRECISION)
        if NEEDS_Q:
            moved = tl.dot(keys.T, change, input_precision=PRECISION).T
            if ADDS:
                moved += tl.where(first_key > 0, 0.0, grads.to(tl.float32))
            if not ONE_WALK:
                kept = tl.where(first_key > 0, length, 0)
                moved += load_tile(dq, rows, DENSE_ROW, kept, DIM, WIDTH).to(tl.float32)
            store_tile(dq, rows, DENSE_ROW, length, moved, DIM, WIDTH)
    if NEEDS_K:
        store_tile(dk, block, SUMS_ROW, num_keys, sum_k * scale, DIM, WIDTH)
    if NEEDS_V:
        store_tile(dv, block, SUMS_ROW, num_keys, sum_v, DIM, WIDTH)


@triton.jit
def gdpa_bwd_kernel(
    grad, q, k, v, offsets, dq, dk, dv, scale, num_keys, first_head, num_heads, splits, share_stride,
    grad_head, q_head, k_strides, v_strides, dk_row,
    GRAD_ROW: tl.constexpr, Q_ROW: tl.constexpr, K_ROW: tl.constexpr, V_ROW: tl.constexpr,
    DENSE_ROW: tl.constexpr, SUMS_ROW: tl.constexpr, ACTIVATION: tl.constexpr, SCALED: tl.constexpr,
    NEEDS_Q: tl.constexpr, NEEDS_K: tl.constexpr, NEEDS_V: tl.constexpr, ADDS: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ALL_KEYS: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One row and head, or one of ``splits`` shares of its queries with shares of dk and dv of its own."""
    ONE_WALK: tl.constexpr = ALL_KEYS <= KEYS or not NEEDS_Q
    if not SCALED:
        scale = 1.0  # a constant, and no instruction for each score
    program, first_key = tl.program_id(0), 0
    if ONE_WALK:
        blocks = tl.cdiv(num_keys, KEYS)
        program, first_key = program // blocks, program % blocks * KEYS
    share, program = program % splits, program // splits
    row, head = (program // num_heads).to(tl.int64), first_head + program % num_heads
    start, length = row_of(offsets, row)
    grad += start * GRAD_ROW + head * grad_head
    q += start * Q_ROW + head * q_head
    dq += start * DENSE_ROW + head * DIM
    k += row * k_strides[0] + head * k_strides[1]
    v += row * v_strides[0] + head * v_strides[1]
    to_share = share.to(tl.int64) * share_stride + row * dk_row + head * DIM
    dk += to_share
    dv += to_share
    if ONE_WALK:  # no loop, out of which addresses would be hoisted into registers
        _walk(
            grad, q, k, v, dq, dk, dv, scale, length, num_keys, first_key, share, splits,
            GRAD_ROW, Q_ROW, K_ROW, V_ROW, DENSE_ROW, SUMS_ROW,
            ACTIVATION, SCALED, NEEDS_Q, NEEDS_K, NEEDS_V, ADDS, DIM, WIDTH, KEYS, TILE, True,
        )  # fmt: skip
    else:
        for first_key in range(0, num_keys, KEYS):
            tl.debug_barrier()  # threads read what others of this program wrote in the walk before
            _walk(
                grad, q, k, v, dq, dk, dv, scale, length, num_keys, first_key, share, splits,
                GRAD_ROW, Q_ROW, K_ROW, V_ROW, DENSE_ROW, SUMS_ROW,
                ACTIVATION, SCALED, NEEDS_Q, NEEDS_K, NEEDS_V, ADDS, DIM, WIDTH, KEYS, TILE, False,
            )  # fmt: skip


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    keys, d = int(key["keys"]), int(key["d"])
    if key["bytes"] == 4:
        return [config(num_warps=4, num_stages=1, TILE=tile, KEYS=16) for tile in (16, 32)]
    few = min(keys, 64)  # on 8 warps, both warpgroups would do the same
    small = [(few, 32, 4, 3), (few, 32, 4, 2), (few, 64, 4, 2), (few, 64, 4, 3)]
    large = [(128, tile, 8, stages) for tile in ((32,) if keys == d == 128 else (64, 32)) for stages in (3, 2)]
    if d > 128:
        tiles = [(min(keys, 32), 32, 8, 2), (few, 32, 8, 2), (few, 32, 8, 1)]  # of which the others spill on sm_90
    elif keys <= 64:
        tiles = small
    elif d <= 64 and not key["dq"]:
        tiles = small + large
    else:
        tiles = large + small
    for_mma, for_both = (min(keys, 32), 16, 4, 2), (few, 32, 8, 2)
    tiles += [for_mma, for_both]
    wide = d > 64 and key["dq"]
    if capability() < 90:  # which holds the operands of a product in registers, too: all others spill
        tiles.insert(0, for_mma if wide else for_both)
    elif capability() >= 100 and wide and keys > 128:
        tiles.insert(0, for_both)
    limit = {"maxnreg": 232} if keys == d == 128 else {}
    configs = [
        config(num_warps=warps, num_stages=stages, TILE=tile, KEYS=size, **limit if size == 128 else {})
        for size, tile, warps, stages in dict.fromkeys(tiles)
    ]
    configs.sort(key=lambda c: _shared_bytes(c, key) > SHARED)  # those that do not fit everywhere last
    of_hopper = _warpgroup_configs(key) if key.get("warpgroups") else []
    return of_hopper + configs if wide else configs + of_hopper


def _warpgroup_configs(key: MetaParameters) -> list[triton.Config]:
    """Of `kernel_bwd_sm90`. Two programs never fit a multiprocessor's registers, so shared memory is free for stages.

    On an H200 the backward took 3.5 ms where the best of the others took 4.2 (d = 128, 256 keys), 1.56 and 1.90 (128
    keys); with heads of 64 and dq it wins too, but spills 24 to 56 bytes, and is not the default.
    """
    keys = int(key["keys"]) if int(key["d"]) == 64 else 128
    return [config(KEYS=keys, STAGES=stages, REGISTERS=240) for stages in (2, 4 if int(key["d"]) == 64 else 3)]


def _shared_bytes(c: triton.Config, key: MetaParameters) -> int:
    """What a program holds at 16 bits: keys, values, stages of queries and their gradients; for dq, ds, and dq as it
    was if there are several walks."""
    size, tile, d = int(c.kwargs["KEYS"]), int(c.kwargs["TILE"]), int(key["d"])
    for_dq = tile * (size + d * (int(key["keys"]) > size)) if key["dq"] else 0
    return int(2 * (2 * d * (size + c.num_stages * tile) + for_dq))


BACKWARD = Kernel(
    gdpa_bwd_kernel, _configs, forms={"STAGES": (kernel_bwd_sm90.gdpa_bwd_sm90_kernel, kernel_bwd_sm90.arguments)}
)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor,
    scale: float, activation: list[str], max_length: int, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``q``, ``k`` and ``v``; those not in ``needs`` are empty."""
    grads = _bwd_outputs(grad, q, k, v, needs)
    backward_into(grads, grad, q, k, v, offsets, scale, activation, max_length, needs)
    return grads


def backward_into(
    grads: tuple[Tensor, Tensor, Tensor], grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor,
    scale: float, activation: list[str], max_length: int, needs: list[bool], adds: bool = False,
) -> None:  # fmt: skip
    """Write the gradients of ``q``, ``k`` and ``v`` that ``needs`` has: dq dense, dk and dv strided alike.

    If ``adds``, dq is that of act(scale q kᵀ) v + q.
    """
    dq, dk, dv = grads
    if not q.shape[0]:
        dk.zero_()
        dv.zero_()
        return
    grad, q, k, v = (with_unit_stride(x) for x in (grad, q, k, v))
    key, (num_rows, num_keys, num_heads, d) = {**key_of(q, k), "dq": needs[0]}, k.shape
    if for_hopper(q.device) and kernel_bwd_sm90.fits(grad, q, k, v, needs):
        key = {**key, "warpgroups": True}
    splits = num_splits(num_rows * num_heads, max_length, q.device)
    sum_q = dq.float() if num_keys > MAX_ROUNDED_KEYS else dq
    dense_row, written = num_heads * d, dk if needs[1] else dv
    if splits > 1:
        sums = [torch.empty(splits, *x.shape, dtype=torch.float32, device=x.device) for x in (dk, dv)]
    else:
        sums = [dk, dv]
    apart = splits > 1 or not (needs[1] or needs[2])
    sums_of_row, sums_row = (num_keys * dense_row, dense_row) if apart else written.stride()[:2]
    keys_apart = 1 if needs[0] else num_keys  # each block of them has a program
    for first, heads, name in runs_of_heads(activation):
        BACKWARD.launch(
            lambda c, n=num_rows * heads * splits: (n * cdiv(keys_apart, c["KEYS"]),), q.device,
            grad, q, k, v, offsets, sum_q, *sums, scale, num_keys, first, heads, splits, k.numel(),
            grad.stride(1), q.stride(1), k.stride()[:3:2], v.stride()[:3:2], sums_of_row,
            key=key, GRAD_ROW=grad.stride(0), Q_ROW=q.stride(0), K_ROW=k.stride(1), V_ROW=v.stride(1),
            DENSE_ROW=dense_row, SUMS_ROW=sums_row, ACTIVATION=name, SCALED=scale != 1,
            NEEDS_Q=needs[0], NEEDS_K=needs[1], NEEDS_V=needs[2], ADDS=adds,
            DIM=d, WIDTH=key["d"], ALL_KEYS=key["keys"],
        )  # fmt: skip
    if splits > 1:
        for share, total in zip(sums, (dk, dv), strict=True):
            total.copy_(share.sum(0))
    if sum_q is not dq:
        dq.copy_(sum_q)
