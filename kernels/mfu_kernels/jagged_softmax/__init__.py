"""Softmax over each row of packed scores."""

from .op import jagged_softmax as jagged_softmax
