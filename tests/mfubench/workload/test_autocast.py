"""A GPU's autocast on a CPU: which results are wide, and that nothing changes without it."""

import pytest
import torch
from torch import nn

from mfubench.workload.autocast import GpuAutocast

SHORT = torch.bfloat16


@pytest.mark.parametrize(
    "function",
    [
        torch.exp,
        lambda x: x.softmax(-1),
        lambda x: nn.functional.softmax(x, -1),
        lambda x: x.sum(0),
        lambda x: x**2,
        lambda x: nn.functional.layer_norm(x, (4,)),
        lambda x: x.cumsum(0),
    ],
)
def test_what_a_gpu_widens_is_wide(function) -> None:
    x = torch.ones(4, 4, dtype=SHORT)
    with torch.autocast("cpu", SHORT), GpuAutocast():
        assert function(x).dtype == torch.float32
    with GpuAutocast():
        assert function(x).dtype == SHORT


def test_what_it_leaves_is_left() -> None:
    x = torch.ones(4, 4, dtype=SHORT)
    with torch.autocast("cpu", SHORT), GpuAutocast():
        assert (x @ x).dtype == nn.functional.silu(x).dtype == (x + x).dtype == SHORT
        assert x.sum(dtype=SHORT).dtype == SHORT  # as asked for
        assert torch.ones(4, dtype=torch.int64).sum().dtype == torch.int64
        assert torch.exp(torch.ones(4, dtype=torch.float64)).dtype == torch.float64
