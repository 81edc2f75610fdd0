"""SumKronLinear in plain aten: two matmuls, the sum over terms inside the second."""

from torch import Tensor


def sum_kron_linear_reference(x: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Mix tokens for all terms at once, lay the terms side by side, then one product sums over terms and features."""
    num_terms, num_in, num_out = z.shape
    mixing = z.permute(2, 0, 1).reshape(1, num_out * num_terms, num_in)
    mixed = mixing @ x  # [B, M R, D]
    return mixed.reshape(x.shape[0], num_out, num_terms * x.shape[2]) @ w.flatten(0, 1)
