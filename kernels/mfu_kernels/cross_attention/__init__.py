"""Softmax attention of each row's own queries over that row's events."""

from .op import cross_attention as cross_attention
