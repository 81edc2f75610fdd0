"""SumKronLinear in plain aten: two matmuls, the sum over terms inside the second."""

from torch import Tensor


def side_by_side(z: Tensor) -> Tensor:
    """z [R, S, M] -> [1, M R, S], the token mixing of all terms as one matrix."""
    num_terms, num_in, num_out = z.shape
    return z.permute(2, 0, 1).reshape(1, num_out * num_terms, num_in)


def mix_tokens(x: Tensor, z: Tensor) -> Tensor:
    """z_rᵀ x of all terms, those of one token beside each other: [B, M, R D]."""
    mixed = side_by_side(z) @ x  # [B, M R, D]
    return mixed.reshape(x.shape[0], z.shape[2], z.shape[0] * x.shape[2])


def sum_kron_linear_reference(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Mix tokens for all terms at once, then one product sums over terms and features."""
    return mix_tokens(x, z) @ w.flatten(0, 1)
