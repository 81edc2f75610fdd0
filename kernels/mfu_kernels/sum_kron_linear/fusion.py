"""Where one fused kernel is worth more than two matmuls: a rule that the launch and the cost share."""

import torch

MAX_TOKENS_IN, MAX_TOKENS_OUT, COLUMNS = 256, 128, 256


def column_blocks(out_dim: int) -> int:
    """Programs that share a sample's output features; each mixes the sample's tokens by itself."""
    return -(-out_dim // COLUMNS)


def fuses(num_in: int, num_out: int, out_dim: int, dtype: torch.dtype) -> bool:
    """Whether the forward runs as one kernel, by S, M, E and the dtype of its matmuls.

    A program holds z of a few terms with all S tokens on chip, and all M rows of a sample in its tile. Mixing tokens
    again for each block of columns may cost at most half of mixing features. Products in fp32 have no tensor core, and
    a matmul's library runs them better.
    """
    fits = num_in <= MAX_TOKENS_IN and num_out <= MAX_TOKENS_OUT
    return fits and dtype.itemsize == 2 and 2 * (column_blocks(out_dim) - 1) * num_in <= out_dim
