"""Jagged GRU in plain aten: all rows step together, to the end of the longest."""

import torch
from torch import Tensor

from mfu_kernels.jagged import from_padded, to_padded
from mfu_kernels.precision import matmul_dtype, widened


def jagged_gru_reference(
    gates: Tensor, weight: Tensor, offsets: Tensor, attention: Tensor | None, *, max_length: int
) -> Tensor:
    """Steps behind a row's end run too, on zeros, and are dropped; the state is kept in fp32 or wider."""
    dtype = matmul_dtype(gates)
    steps = to_padded(widened(gates), offsets, max_length).unbind(1)
    scales = None if attention is None else to_padded(widened(attention)[:, None], offsets, max_length).unbind(1)
    state = widened(gates).new_zeros(offsets.shape[0] - 1, weight.shape[0])
    states = []
    for step, inputs in enumerate(steps):
        of_input, of_state = inputs.chunk(3, dim=1), widened(state.to(dtype) @ weight).chunk(3, dim=1)
        update, reset = (torch.sigmoid(a + b) for a, b in zip(of_input[:2], of_state[:2], strict=True))
        proposed = torch.tanh(of_input[2] + reset * of_state[2])
        update = update if scales is None else update * scales[step]
        state = state + update * (proposed - state)
        states.append(state)
    if not states:
        return gates[:, : weight.shape[0]].to(dtype)  # no events at all
    return from_padded(torch.stack(states, dim=1), offsets, gates.shape[0]).to(dtype)
