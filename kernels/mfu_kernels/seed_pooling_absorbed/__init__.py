"""Seed pooling that never makes keys and values: their projections are absorbed by queries and by outputs."""

from .op import seed_pooling_absorbed as seed_pooling_absorbed
