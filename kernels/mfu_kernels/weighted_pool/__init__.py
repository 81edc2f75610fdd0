"""Weighted sum of each row of packed values."""

from .op import weighted_pool as weighted_pool
