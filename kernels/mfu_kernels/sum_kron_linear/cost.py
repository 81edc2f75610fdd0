"""What one call of `sum_kron_linear` costs."""

from torch import Tensor

from mfu_kernels.cost import OpCost, PassCost
from mfu_kernels.formulas import matmul_bytes, moved_once, needs_grad
from mfu_kernels.precision import matmul_dtype

from .fusion import column_blocks, fuses


def sum_kron_linear_cost(x: Tensor, z: Tensor, w: Tensor, *, impl: str) -> OpCost:
    """Zᵀ X first, then times W; nothing is padded, so that model and padded agree.

    The kernel mixes tokens once for each block of columns, and a triton backward again for W's gradient.
    """
    batch, num_in, in_dim = x.shape
    num_terms, _, num_out = z.shape
    mix_tokens = 2 * batch * num_terms * num_out * num_in * in_dim
    mix_features = 2 * batch * num_terms * num_out * in_dim * w.shape[2]
    fwd = mix_tokens + mix_features
    bwd = (needs_grad(x) + needs_grad(z)) * mix_tokens + (needs_grad(w) + needs_grad(x, z)) * mix_features
    again_fwd = again_bwd = 0
    if impl == "triton":
        if fuses(num_in, num_out, w.shape[2], matmul_dtype(x)):
            again_fwd = (column_blocks(w.shape[2]) - 1) * mix_tokens
        again_bwd = needs_grad(w) * mix_tokens
    moved = moved_once((x, z, w), matmul_bytes(batch * num_out * w.shape[2], x))
    return OpCost(
        PassCost(fwd, fwd, fwd + again_fwd, moved.fwd, recomputed=again_fwd),
        PassCost(bwd, bwd, bwd + again_bwd, moved.bwd, recomputed=again_bwd),
    )
