"""Fixtures of the model tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def in_fp64() -> Iterator[None]:
    """fp64 by default, where a difference stands out from rounding however little it changes a score."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
