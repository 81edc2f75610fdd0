"""Mean or sum of each row of packed values."""

from .op import jagged_pool as jagged_pool
