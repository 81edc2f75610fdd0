"""The GDPA block as a chain of the references that it is made of."""

from torch import Tensor

from mfu_kernels.gdpa.reference import gdpa_reference
from mfu_kernels.layer_norm.reference import layer_norm_reference
from mfu_kernels.rms_norm.reference import rms_norm_reference


def gdpa_block_reference(
    x: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    activation: tuple[str, ...],
    eps: float,
    max_length: int,
    packed: Tensor | None = None,
) -> Tensor:
    """x + RMSNorm(GDPA(LN(x)) + LN(x)); norms run over all heads together.

    ``packed``, of which k and v may be slices, is for implementations that write its gradient as one.
    """
    queries = layer_norm_reference(x.flatten(1), None, None, None, eps=eps).view_as(x)
    attended = gdpa_reference(queries, k, v, offsets, scale=scale, activation=activation, max_length=max_length)
    normed = rms_norm_reference((attended + queries).flatten(1), None, eps=eps)
    return (x + normed.view_as(x)).to(x.dtype)
