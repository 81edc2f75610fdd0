"""SumKronLinear in Triton, backward: all that meets a sample's tokens, in one pass over them.

With Z [M R, S] the mixing of all terms, the backward needs Z x for w, Zᵀ g for x and g xᵀ for z, where g is the
gradient of Z x. A program keeps Z in shared memory and its share of Z's gradient in registers, and walks over tiles of
FEATURES features of a sample: each tile of x and of g is read once, for all three. The shares are summed after, in
order, without atomics. What is left, w's gradient and g itself, are plain matmuls, which a library runs well.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfu_kernels.launching import Kernel, capability, config, current, next_power_of_2
from mfu_kernels.modes import MetaParameters
from mfu_kernels.rows import num_walkers, with_unit_stride

MAX_SHARE = 32_768  # numbers of Z that a program sums up
# Programs a multiprocessor, by the numbers of Z that each holds: no more than are resident at once on sm_90.
MOST_PROGRAMS, RESIDENT = 4, 16_384


@triton.jit
def sum_kron_linear_bwd_kernel(
    x, mixing, grad, mixed, dx, shares, batch, in_dim, x_sample, x_token,
    NEEDS_X: tl.constexpr, NEEDS_Z: tl.constexpr, NEEDS_W: tl.constexpr,
    MIXED: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """mixed = Z x, dx = Zᵀ grad, and a share of dZ = the sum of grad xᵀ; Z is [MIXED, S], in a tile [ROWS, TOKENS].

    A step is a block of features of a sample; programs take them in turns, so that neighbours read neighbours.
    """
    tokens, rows, features = tl.arange(0, TOKENS), tl.arange(0, ROWS), tl.arange(0, FEATURES)
    inside_s, inside_r = tokens < S, rows < MIXED
    inside_z = inside_r[:, None] & inside_s[None, :]
    z = tl.load(mixing + (rows[:, None] * S + tokens[None, :]), mask=inside_z, other=0.0)
    dz = tl.zeros([ROWS, TOKENS], tl.float32)
    blocks = tl.cdiv(in_dim, FEATURES)
    x_places = tokens.to(tl.int64)[:, None] * x_token + features[None, :]
    for step in range(tl.program_id(0), batch * blocks, tl.num_programs(0)):
        sample, start = (step // blocks).to(tl.int64), step % blocks * FEATURES
        inside_f = features < in_dim - start
        of_tokens = inside_s[:, None] & inside_f[None, :]
        of_rows = inside_r[:, None] & inside_f[None, :]
        row_places = rows[:, None] * in_dim + features[None, :]
        if NEEDS_Z or NEEDS_W:
            tile = tl.load(x + sample * x_sample + start + x_places, mask=of_tokens, other=0.0)
        if NEEDS_X or NEEDS_Z:
            change = tl.load(grad + sample * (MIXED * in_dim) + start + row_places, mask=of_rows, other=0.0)
        if NEEDS_W:
            product = tl.dot(z, tile).to(mixed.dtype.element_ty)
            tl.store(mixed + sample * (MIXED * in_dim) + start + row_places, product, mask=of_rows)
        if NEEDS_X:
            product = tl.dot(z.T, change).to(dx.dtype.element_ty)
            places = tokens[:, None] * in_dim + features[None, :]
            tl.store(dx + sample * (S * in_dim) + start + places, product, mask=of_tokens)
        if NEEDS_Z:
            dz = tl.dot(change, tile.T, dz)
    if NEEDS_Z:
        shares += tl.program_id(0).to(tl.int64) * (MIXED * S)
        tl.store(shares + (rows[:, None] * S + tokens[None, :]), dz, mask=inside_z)


def _configs(key: MetaParameters) -> Sequence[triton.Config]:
    """First tiles of 32 features, three on their way beside Z: 147 KB of shared memory for the largest share.

    On sm_90 that takes up to 231 registers and spills nothing; with 64 features 256 tokens spill, and before sm_90 all.
    """
    share, tokens = int(key["rows"]) * int(key["tokens"]), int(key["tokens"])
    tiles = [(32, 3), (32, 4), (32, 2)] + ([(64, 2), (64, 3)] if capability() >= 90 and tokens < 256 else [])
    warps = 8 if share > 64 * 128 else 4
    return [config(num_warps=warps, num_stages=stages, FEATURES=features) for features, stages in tiles]


BACKWARD = Kernel(sum_kron_linear_bwd_kernel, _configs, instead_of="three matmuls")


def fits(num_mixed: int, num_in: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel is made for such a Z, by M R and S.

    A program sums Z's gradient up in registers, in a tile of powers of two. Before sm_90 a product reads from
    registers, so that Z takes as many again.
    """
    with current(device):
        most = MAX_SHARE if capability() >= 90 else MAX_SHARE // 4
    return dtype.itemsize == 2 and next_power_of_2(num_mixed) * next_power_of_2(num_in) <= most


def key_of(num_mixed: int, num_in: int) -> dict[str, int]:
    """What the best config depends on, by M R and S."""
    return {"rows": max(16, next_power_of_2(num_mixed)), "tokens": max(16, next_power_of_2(num_in))}


def mix_back(
    grad: Tensor, x: Tensor, mixing: Tensor, needs_x: bool, needs_z: bool, needs_w: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Zᵀ ``grad`` [B, S, D], the sum over B of ``grad`` xᵀ [M R, S] in fp32, and Z x [B, M R, D], each if it is needed.

    ``mixing`` is Z [1, M R, S], ``grad`` [B, M R, D]; what is not needed comes as an empty tensor.
    """
    (batch, num_in, in_dim), num_mixed = x.shape, mixing.shape[1]
    key = key_of(num_mixed, num_in)
    programs = num_walkers(x.device, max(1, min(MOST_PROGRAMS, RESIDENT // (key["rows"] * key["tokens"]))))
    x, mixing = with_unit_stride(x), mixing.contiguous()
    dx = x.new_empty(x.shape if needs_x else (0,))
    shares = x.new_empty((programs, num_mixed, num_in) if needs_z else (0,), dtype=torch.float32)
    mixed = x.new_empty((batch, num_mixed, in_dim) if needs_w else (0,))
    BACKWARD.launch(
        lambda c: (programs,), x.device,
        x, mixing, grad, mixed, dx, shares, batch, in_dim, x.stride(0), x.stride(1),
        key=key, NEEDS_X=needs_x, NEEDS_Z=needs_z, NEEDS_W=needs_w,
        MIXED=num_mixed, S=num_in, ROWS=key["rows"], TOKENS=key["tokens"],
    )  # fmt: skip
    return dx, shares.sum(0) if needs_z else shares, mixed
