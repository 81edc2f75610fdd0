"""The backward of `sum_kron_linear` with impl="triton", in a fixed order of every sum.

w's gradient reads zᵀ x, which the forward kernel never wrote: it is made again here, in exchange for the memory.
"""

from torch import Tensor

from .boundary import _bwd_outputs
from .kernel_bwd import BACKWARD, fits, key_of, mix_back
from .reference import side_by_side


def backward(
    grad: Tensor, x: Tensor, z: Tensor, w: Tensor, needs_x: bool, needs_z: bool, needs_w: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, z and w, each empty if it is not needed.

    On a GPU three matmuls do what the kernel would, until it was faster there.
    """
    dx, dz, dw = _bwd_outputs(grad, x, z, w, needs_x, needs_z, needs_w)
    num_terms, num_in, num_out = z.shape
    num_mixed = num_out * num_terms
    mixing, dmixed = side_by_side(z), grad.new_empty(0)  # [1, M R, S], [B, M R, D]
    if needs_x or needs_z:
        dmixed = (grad @ w.flatten(0, 1).T).view(len(x), num_mixed, -1)
    fused = fits(num_mixed, num_in, x.dtype, x.device) and BACKWARD.takes_over(key_of(num_mixed, num_in), x.device)
    dx, dmixing, mixed = (mix_back if fused else _by_matmuls)(dmixed, x, mixing, needs_x, needs_z, needs_w)
    if needs_w:
        dw = (mixed.view(-1, num_terms * x.shape[2]).T @ grad.flatten(0, 1)).view(w.shape)
    if needs_z:
        dz = dmixing.to(z.dtype).view(num_out, num_terms, num_in).permute(1, 2, 0).contiguous()
    return dx, dz, dw


def _by_matmuls(
    grad: Tensor, x: Tensor, mixing: Tensor, needs_x: bool, needs_z: bool, needs_w: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What `mix_back` gives, by three matmuls."""
    none = x.new_empty(0)
    return (
        mixing.mT @ grad if needs_x else none,
        (grad @ x.mT).sum(0) if needs_z else none,
        mixing @ x if needs_w else none,
    )
