"""`sum_kron_linear` in plain matmuls: its whole backward, and its forward where `fuses` says no.

Nothing is left to fuse in a backward that trains z and w. Both dx and dz read g wᵀ, all of it; dw reads zᵀ x, which the
forward kernel never wrote, so that it is made again here; dz and dw are sums over the batch, which a matmul's library
splits well. Every sum has a fixed order: the same bits twice.
"""

from torch import Tensor

from .boundary import _bwd_outputs


def side_by_side(z: Tensor) -> Tensor:
    """z [R, S, M] -> [M R, S], the mixing of all terms as one matrix."""
    return z.permute(2, 0, 1).flatten(0, 1)


def forward(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """[B, M, E], by way of zᵀ x [B, M, R D]."""
    return _mixed(x, z) @ w.flatten(0, 1)


def _mixed(x: Tensor, z: Tensor) -> Tensor:
    return (side_by_side(z) @ x).view(len(x), z.shape[2], -1)


def backward(
    grad: Tensor, x: Tensor, z: Tensor, w: Tensor, needs_x: bool, needs_z: bool, needs_w: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, z and w, each empty if it is not needed."""
    dx, dz, dw = _bwd_outputs(grad, x, z, w, needs_x, needs_z, needs_w)
    num_terms, num_in, num_out = z.shape
    if needs_w:
        dw = (_mixed(x, z).flatten(0, 1).T @ grad.flatten(0, 1)).view(w.shape)
    if needs_x or needs_z:
        dmixed = (grad @ w.flatten(0, 1).T).view(len(x), num_out * num_terms, -1)
        if needs_x:
            dx = side_by_side(z).T @ dmixed
        if needs_z:
            of_samples = dmixed @ x.mT  # [B, M R, S]
            dz = of_samples.sum(0).view(num_out, num_terms, num_in).permute(1, 2, 0).contiguous()
    return dx, dz, dw
