"""The backward of `sum_kron_linear` with impl="triton": plain matmuls, in a fixed order of every sum.

A fused kernel has nothing to gain where z and w are trained. Both dx and dz read all of g wᵀ, which is as large as
zᵀ x; dw reads zᵀ x, which the forward kernel never wrote, so that it is made again here, in exchange for the memory; dz
and dw are sums over the batch, which a matmul's library splits well.
"""

from torch import Tensor

from .boundary import _bwd_outputs
from .reference import mix_tokens, side_by_side


def backward(
    grad: Tensor, x: Tensor, z: Tensor, w: Tensor, needs_x: bool, needs_z: bool, needs_w: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, z and w, each empty if it is not needed."""
    dx, dz, dw = _bwd_outputs(grad, x, z, w, needs_x, needs_z, needs_w)
    num_terms, num_in, num_out = z.shape
    if needs_w:
        dw = (mix_tokens(x, z).flatten(0, 1).T @ grad.flatten(0, 1)).view(w.shape)
    if needs_x or needs_z:
        dmixed = (grad @ w.flatten(0, 1).T).view(len(x), num_out * num_terms, -1)
        if needs_x:
            dx = side_by_side(z).mT @ dmixed
        if needs_z:
            of_samples = dmixed @ x.mT  # [B, M R, S]
            dz = of_samples.sum(0).view(num_out, num_terms, num_in).permute(1, 2, 0).contiguous()
    return dx, dz, dw
